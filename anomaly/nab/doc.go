// Package nab scores anomaly detectors by the published rules of the Numenta
// Anomaly Benchmark (Lavin and Ahmad, "Evaluating Real-time Anomaly Detection
// Algorithms", 2015; corpus version 1.1). Written from the rules.
//
// It owns nothing and runs nothing: Load reads a corpus, the caller scores every
// row of every file with a detector, Prepare joins the two, and a Sheet answers
// for any profile what a threshold earns and which threshold earns most.
// Everything is immutable once made and safe for concurrent use.
//
// The rules: the first min(15 % of the rows, 750) rows of a file do not count. A
// detection is a row whose score reaches the threshold. A label window earns once
// the sigmoid value of its earliest detection, 1 at its left end and 0 at its
// right end; without one it costs the profile's weight for a miss. A detection
// outside windows costs the weight for a false alarm, little shortly behind a
// window and fully farther away. The sum is scaled so that no detection at all
// is 0 and perfect detection is 100. One threshold holds for the whole corpus
// and, by the rules, is chosen to maximise the sum; CrossValidate chooses it on
// other files than it scores.
//
//	src, err := nab.OpenDir("NAB")
//	c, err := nab.Load(src)
//	scores := ...                        // one slice per c.Files, one number per row
//	sheet, err := c.Prepare(scores)
//	fmt.Println(sheet.Best(nab.Standard).Score)
package nab
