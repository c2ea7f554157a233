package datapath

import (
	"bytes"
	"testing"

	"tapgate/loader"
	"tapgate/test/packet"
)

// theQuestion is what the data plane has to ask for a target.
func theQuestion(target loader.Target) []byte {
	if target.Via == sensor6 {
		return packet.SolicitFrame(gate.usMAC, us6, gate.usMAC, sensor6)
	}
	return packet.ARPRequest(gate.usMAC, us, sensor)
}

// asksRightly sends packets to a mirror whose next hop nobody knows, and holds
// the one question that leaves against what it has to be.
func asksRightly(t *testing.T, target loader.Target, send func()) {
	t.Helper()
	gate.setNeighs(t, neigh{})
	gate.runUntilAsked(t, target, send)
	got, want := gate.viaEth2.questions(t, 1)[0], theQuestion(target)
	if len(got) < len(want) || !bytes.Equal(got[:len(want)], want) {
		t.Errorf("the question is\n%x, want\n%x", got, want)
		// A checksum that was left to the link lands in the padding: that of zeros.
	} else if padding := bytes.Replace(got[len(want):], []byte{0xff, 0xff}, []byte{0, 0}, 1); !bytes.Equal(padding, make([]byte, len(padding))) {
		t.Errorf("behind the question stands what was in the packet: %x", padding)
	}
	if len(got) > 256 {
		t.Errorf("a question of %d bytes", len(got))
	}
}

// Whatever packet it is made from, a question is right.
func TestQuestionFromAnyPacket(t *testing.T) {
	for _, target := range []loader.Target{via, via6} {
		gate.applyResolved(t, mirror("ids", inside, target))
		for name, frame := range frames() {
			t.Run(target.String()+"/"+name, func(t *testing.T) {
				asksRightly(t, target, func() { gate.runCut(t, "tap_in", skb{Ifindex: internal}, frame) })
			})
		}
		t.Run(target.String()+"/tag beside the frame", func(t *testing.T) {
			asksRightly(t, target, func() {
				gate.runPrepared(t, preparation{program: "tap_out", tag: 7}, skb{Ifindex: internal}, plainPacket())
			})
		})
		t.Run(target.String()+"/large", func(t *testing.T) {
			frame := packet.Frame(fromServer(), outward(), packet.UDP(1, 2), packet.Payload(3000))
			asksRightly(t, target, func() { gate.run(t, "tap_in", skb{Ifindex: internal}, frame) })
		})
	}
	gate.quiet(t)
}

// Nor may a checksum or segments that are still to be made get into it. Such
// packets come by a real interface.
func TestQuestionFromOffloadedPacket(t *testing.T) {
	type offloaded struct {
		v     vnetHeader
		frame []byte
	}
	make := func(frame []byte, l4, field int, v vnetHeader) offloaded {
		v, frame = partial(frame, l4, field, v)
		return offloaded{v, frame}
	}
	p := packet.Frame
	packets := map[string]offloaded{
		"UDP":            make(p(fromServer(), outward(), packet.UDP(1, 2), packet.Payload(100)), 34, 6, vnetHeader{}),
		"UDP, short":     make(p(fromServer(), outward(), packet.UDP(1, 2), packet.Payload(2)), 34, 6, vnetHeader{}),
		"UDP, long":      make(p(fromServer(), outward(), packet.UDP(1, 2), packet.Payload(1472)), 34, 6, vnetHeader{}),
		"IPv6 UDP":       make(p(fromServer(), outward6(), packet.UDP(1, 2), packet.Payload(100)), 54, 6, vnetHeader{}),
		"IPv6 UDP, ext.": make(p(fromServer(), outward6(), packet.HopByHop(8), packet.UDP(1, 2), packet.Payload(100)), 54+72, 6, vnetHeader{}),
		"TCP":            make(p(fromServer(), outward(), packet.TCP(1, 2, true), packet.Payload(100)), 34, 16, vnetHeader{}),
		"TCP GSO":        make(p(fromServer(), outward(), packet.TCP(1, 2, true), packet.Payload(4000)), 34, 16, vnetHeader{gsoType: gsoTCP4, headers: 66, gsoSize: 1000}),
		"IPv6 TCP GSO":   make(p(fromServer(), outward6(), packet.TCP(1, 2, true), packet.Payload(4000)), 54, 16, vnetHeader{gsoType: gsoTCP6, headers: 86, gsoSize: 1000}),
	}
	for _, target := range []loader.Target{via, via6} {
		gate.applyResolved(t, mirror("ids", inside, target))
		for name, o := range packets {
			t.Run(target.String()+"/"+name, func(t *testing.T) {
				asksRightly(t, target, func() { gate.sendAndWait(t, o.v, o.frame) })
			})
		}
	}
	gate.quiet(t)
}

// sendAndWait sends from the server and waits until the tap has seen it.
func (r *rig) sendAndWait(t *testing.T, v vnetHeader, frame []byte) {
	t.Helper()
	before := findMirror(r.status(t), "ids").Matched.Packets
	r.sendOffloaded(t, v, frame)
	if err := waitUntil(func() bool { return findMirror(r.status(t), "ids").Matched.Packets > before }); err != nil {
		t.Fatal("the packet did not come to the tap")
	}
}

// While copies flow, one question in a second at the most, also with several
// targets behind the same next hop; and none while the answer is young.
func TestQuestionRate(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, via), mirror("more", inside, via))
	burst := func() {
		for range 200 {
			gate.run(t, "tap_in", skb{Ifindex: internal}, plainPacket())
		}
	}
	for _, c := range []struct {
		name  string
		state func() neigh
		asks  uint64
	}{
		{"answer is young", func() neigh { return fresh(t) }, 0},
		// Asked in the future: this second lasts as long as the test.
		{"asked in this second", func() neigh { return neigh{Asked: now(t) + 1e12} }, 0},
		{"answer is old, asked in this second", func() neigh { return neigh{MAC: macWord(sensorMAC), Confirmed: 1, Asked: now(t) + 1e12} }, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			gate.setNeighs(t, c.state())
			burst()
			if got := gate.neighbour(t, via).Asks; got != c.asks {
				t.Errorf("%d questions, want %d", got, c.asks)
			}
			gate.quietButCopies(t)
		})
	}
	t.Run("never asked", func(t *testing.T) {
		gate.setNeighs(t, neigh{})
		start := now(t)
		burst()
		// The second begins anew with the first question.
		limit := 1 + (now(t)-start)/1e9
		got := gate.neighbour(t, via)
		if got.Asks < 1 || got.Asks > limit {
			t.Errorf("%d questions in %d ns, at the most %d", got.Asks, now(t)-start, limit)
		}
		gate.viaEth2.questions(t, int(got.Asks))
	})
	gate.quiet(t)
}

// A question that the link does not take is counted, and does not make the next hop fail.
func TestQuestionRefused(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, via))
	if err := gate.Gateway.SetUp("eth2", false); err != nil {
		t.Fatal(err)
	}
	gate.setNeighs(t, neigh{MAC: macWord(sensorMAC), Confirmed: 1})
	const asks = 7 // more than may stay unanswered
	for range asks {
		gate.secondPasses(t)
		gate.runUntilAsked(t, via, func() { gate.run(t, "tap_in", skb{Ifindex: internal}, plainPacket()) })
	}
	got := gate.neighbour(t, via)
	if got.AsksRefused != asks || got.State != "reachable" {
		t.Errorf("the next hop is %+v, want %d refused questions, and reachable", got, asks)
	}
	if err := gate.Gateway.SetUp("eth2", true); err != nil {
		t.Fatal(err)
	}
	gate.waitCarrier(t, "eth2")
}
