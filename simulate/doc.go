// Package simulate is a fleet of devices that publish believable telemetry over
// MQTT: the data of `sluice dev --simulate` and `sluice simulate`, and the load
// of tests that need a fleet rather than a flood.
//
// It owns one MQTT connection per device up to Config.ConnectionsMax (beyond
// that several devices share one, like devices behind a gateway), spread over
// the brokers, and one goroutine per schedulerShare of connections.
//
// A device has a site (weather is shared, offsets are its own), a daily cycle,
// correlated noise, a battery, and now and then a fault: a spike, a stuck
// sensor, a level shift, noise, a drift. Values depend on the seed, the number
// of the device, the times of its messages and nothing else.
//
// Invariants: a device publishes in the order of its times; a message that was
// accepted is sent until it is acknowledged, whatever node dies (see package
// publisher); a measurement that cannot leave because Config.Window messages
// per connection wait is counted as skipped, because a device has no endless
// memory either.
//
// What it does not do: command subscriptions, sessions, bulk load (see bench).
// Run may be called once; Stats may be called at any time and stands in for a
// registry, because a simulation ends with its command.
//
//	s, err := simulate.New(logger, simulate.Config{Brokers: []string{"127.0.0.1:1883"}, Devices: 100})
//	if err != nil { return err }
//	err = s.Run(ctx) // until ctx ends
//	fmt.Println(s.Stats().Acknowledged)
package simulate
