// Package plot draws what a detector made of a series: the values, the band of
// what was expected, and the alerts; a panel per sensor, as SVG or PNG.
//
// A Chart is drawn in pixels columns: however many readings there are, a column
// shows the smallest and the largest of its own, so that no spike is lost and a
// drawing of a million rows is as small as one of a thousand. It owns nothing
// and depends on no font of the system.
//
//	c := plot.Chart{Title: "pump.csv", Panels: panels, Alerts: spans}
//	err := c.SVG(w)
package plot
