// Command faults runs the table of faults against real processes:
//
//	faults --binary bin/sluice                  all of them
//	faults --binary bin/sluice --only F1,F4     those that begin with F1 or F4
//	faults judge DIR                            judges a kept history again
//
// It ends with exit code 0 only if every fault was survived.
package main
