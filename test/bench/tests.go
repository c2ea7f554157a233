package main

import "context"

// sample is one measurement of one mode.
type sample struct {
	// Units arrived at the far ends: packets of a UDP test, payload bytes of
	// a TCP test.
	Units float64 `json:"units"`
	// CPU is the CPU time of everything, in ns.
	CPU float64 `json:"cpu_ns"`
	// Frames at the sensor.
	Frames float64 `json:"copies"`
	// Seen of what the sensor should have seen, in Units. A TCP test counts
	// whole frames at the sensor against payload, so it is above 1.
	Seen float64 `json:"seen"`
	// Sent by the generator, 0 where it is not known.
	Sent float64 `json:"sent,omitempty"`
	// Fast of the packets did not take the stack: the gateway says so.
	Fast float64 `json:"fast,omitempty"`
	// Retransmits of a TCP test.
	Retransmits float64 `json:"retransmits,omitempty"`
}

// test is one kind of traffic.
type test struct {
	name    string
	what    string
	unit    string  // of the rate
	scale   float64 // from units per ns of CPU time to the rate
	measure func(context.Context, *lab) (sample, error)
}

func (t test) title() string { return t.name }

var allTests = []test{
	{"udp-out", "64-byte UDP, server to outside", "Mpps", 1e3, udp(outbound)},
	{"udp-both", "64-byte UDP, both directions in turn", "Mpps", 1e3, udp(alternating)},
	{"tcp-1500", "iperf3, frames of 1500 bytes in the gateway", "Gbit/s", 8, tcp(false)},
	{"tcp-gso", "iperf3, packets of up to 64 KiB in the gateway", "Gbit/s", 8, tcp(true)},
}
