package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"tapgate/loader"
	"tapgate/test/packet"
)

// waitUntil waits for what the kernel does in its own time.
func waitUntil(ok func() bool) error {
	for end := time.Now().Add(arriveTime); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return nil
		}
	}
	return errors.New("not so in time")
}

// Each kind of target finishes the frame in its way.
func TestDeliverKinds(t *testing.T) {
	frame := plainPacket()
	for _, c := range []struct {
		target loader.Target
		tap    *tap
		macs   net.HardwareAddr // destination and source at the sensor
	}{
		{via, gate.viaEth2, append(bytes.Clone(sensorMAC), gate.usMAC...)},
		{via6, gate.viaEth2, append(bytes.Clone(sensorMAC), gate.usMAC...)},
		{l2, gate.viaEth6, frame[:12]},
		{l2with, gate.viaEth6, append(bytes.Clone(l2MAC), packet.ServerMAC...)},
	} {
		t.Run(c.target.String(), func(t *testing.T) {
			gate.applyResolved(t, mirror("ids", inside, c.target))
			change := gate.during(t, func() { gate.run(t, "tap_in", skb{Ifindex: internal}, frame) })
			want := append(bytes.Clone(c.macs), frame[12:]...)
			if got := c.tap.copies(t, 1); !bytes.Equal(got[0], want) {
				t.Errorf("the copy is\n%x, want\n%x", got[0], want)
			}
			change.mirror(t, "ids", "tap_in", copied(count(1, len(frame))))
			gate.quiet(t)
		})
	}
}

// A copy may be as large as the MTU of the sensor's interface, and tags do not count.
func TestDeliverTooBig(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, via))
	udp := func(n int) packet.Layer { return packet.Payload(n - 28) }
	for _, c := range []struct {
		name  string
		frame []byte
		fits  bool
	}{
		{"MTU", packet.Frame(fromServer(), outward(), packet.UDP(1, 2), udp(1500)), true},
		{"MTU and one", packet.Frame(fromServer(), outward(), packet.UDP(1, 2), udp(1501)), false},
		{"tagged MTU", packet.Frame(fromServer(), packet.Tag(7), outward(), packet.UDP(1, 2), udp(1500)), true},
		{"tagged MTU and one", packet.Frame(fromServer(), packet.Tag(7), outward(), packet.UDP(1, 2), udp(1501)), false},
		{"no IP, MTU and one", packet.Frame(packet.EtherOf(packet.ServerMAC, packet.GatewayMAC, 0x9999), packet.Payload(1501)), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			gate.setNeighs(t, fresh(t))
			ctx := skb{Ifindex: internal}
			change := gate.during(t, func() { gate.run(t, "tap_in", ctx, c.frame).unchanged(t, ctx, c.frame) })
			n := count(1, len(c.frame))
			want := copied(n)
			if !c.fits {
				want = skipped("too_big", n)
			} else if got := gate.viaEth2.copies(t, 1); !bytes.Equal(got[0][12:], c.frame[12:]) {
				t.Errorf("the copy is\n%x, want\n%x", got[0], c.frame)
			}
			change.mirror(t, "ids", "tap_in", want)
			change.target(t, "ids", via, want)
		})
	}
	// Two tags: more than a veth's other end takes, so only the account tells.
	gate.setNeighs(t, fresh(t))
	frame := packet.Frame(fromServer(), packet.ServiceTag(7), packet.Tag(7), outward(), packet.UDP(1, 2), udp(1500))
	change := gate.during(t, func() { gate.run(t, "tap_in", skb{Ifindex: internal}, frame) })
	account := difference(findMirror(change.before, "ids").Ledger, findMirror(change.after, "ids").Ledger)
	if account.copied != count(1, len(frame)) {
		t.Errorf("two tags above the MTU: %+v, want copied", account)
	}
	gate.quiet(t)
}

// Without an answer to a question, copies are skipped, each counted, and production goes on.
func TestDeliverUnresolved(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, via))
	frame, ctx := plainPacket(), skb{Ifindex: internal}
	for _, c := range []struct {
		name   string
		state  neigh
		copied bool
		after  string // state told by status
	}{
		{"never answered", neigh{Asked: now(t)}, false, "incomplete"},
		{"answered", fresh(t), true, "reachable"},
		{"four questions unanswered", neigh{MAC: macWord(sensorMAC), Confirmed: 1, Asked: now(t), Unanswered: 4}, true, "probing"},
		{"five questions unanswered", neigh{MAC: macWord(sensorMAC), Confirmed: 1, Asked: now(t), Unanswered: 5}, false, "failed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.state.Asked = now(t) + 1e12 // in the future: nobody asks, however long this takes
			gate.setNeighs(t, c.state)
			change := gate.during(t, func() { gate.run(t, "tap_in", ctx, frame).unchanged(t, ctx, frame) })
			n := count(1, len(frame))
			want := copied(n)
			if !c.copied {
				want = skipped("unresolved", n)
			} else {
				gate.viaEth2.copies(t, 1)
			}
			change.mirror(t, "ids", "tap_in", want)
			change.target(t, "ids", via, want)
			if got := gate.neighbour(t, via).State; got != c.after {
				t.Errorf("status calls the next hop %q, want %q", got, c.after)
			}
			gate.quiet(t)
		})
	}
}

// Five questions without an answer, each after its second, and the next hop has
// failed; one answer, and it is back.
func TestDeliverFailsAndReturns(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, via))
	frame := plainPacket()
	gate.setNeighs(t, neigh{MAC: macWord(sensorMAC), Confirmed: 1})
	for range 5 {
		gate.secondPasses(t)
		gate.runUntilAsked(t, via, func() { gate.run(t, "tap_in", skb{Ifindex: internal}, frame) })
	}
	gate.viaEth2.take(t, 5, question)
	gate.quietButCopies(t)
	if got := gate.neighbour(t, via); got.State != "failed" {
		t.Errorf("status calls the next hop %q after five questions, want failed", got.State)
	}
	change := gate.during(t, func() { gate.run(t, "tap_in", skb{Ifindex: internal}, frame) })
	change.mirror(t, "ids", "tap_in", skipped("unresolved", count(1, len(frame))))
	gate.run(t, "dmz_in", skb{Ifindex: dmz}, answer())
	change = gate.during(t, func() { gate.run(t, "tap_in", skb{Ifindex: internal}, frame) })
	change.mirror(t, "ids", "tap_in", copied(count(1, len(frame))))
	gate.viaEth2.copies(t, 1)
}

// The MTU is that of now, where the kernel can be asked, else that of the apply.
func TestDeliverMTUOfNow(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, l2))
	t.Cleanup(func() {
		if err := gate.Gateway.SetMTU("eth6", 1500); err != nil {
			t.Error(err)
		}
	})
	if err := gate.Gateway.SetMTU("eth6", 1400); err != nil {
		t.Fatal(err)
	}
	frame := packet.Frame(fromServer(), outward(), packet.UDP(1, 2), packet.Payload(1401-28))
	n := count(1, len(frame))
	tooBig := func() bool {
		change := gate.during(t, func() { gate.run(t, "tap_in", skb{Ifindex: internal}, frame) })
		got := difference(findMirror(change.before, "ids").Ledger, findMirror(change.after, "ids").Ledger)
		if !got.equal(copied(n)) && !got.equal(skipped("too_big", n)) {
			t.Fatalf("ledger: %+v", got)
		}
		return !got.equal(copied(n))
	}
	if haveCheckMTU(t) {
		// It is asked for once in a tick of the clock.
		if err := waitUntil(tooBig); err != nil {
			t.Error("the MTU of now does not count")
		}
	} else if tooBig() {
		t.Error("the kernel cannot be asked, but the MTU of the apply does not count")
	}
	gate.quietButCopies(t)
}

// An interface of the dmz that is gone, or that lost its program: told by reason.
func TestDeliverWithoutDelivery(t *testing.T) {
	frame, ctx := plainPacket(), skb{Ifindex: internal}
	n := count(1, len(frame))
	t.Run("program missing", func(t *testing.T) {
		gate.applyResolved(t, mirror("ids", inside, l2))
		gate.dropDelivery(t, "eth6", dmz2)
		change := gate.during(t, func() { gate.run(t, "tap_in", ctx, frame).unchanged(t, ctx, frame) })
		change.mirror(t, "ids", "tap_in", skipped("undelivered", n))
		gate.viaEth6.take(t, 1, isCopy) // what left was no copy of ours to count
		if len(change.after.Problems) == 0 {
			t.Error("status tells no problem")
		}
		gate.apply(t, mirror("ids", inside, l2))
		change = gate.during(t, func() { gate.run(t, "tap_in", ctx, frame) })
		change.mirror(t, "ids", "tap_in", copied(n))
		gate.viaEth6.copies(t, 1)
	})
	t.Run("link down", func(t *testing.T) {
		gate.applyResolved(t, mirror("ids", inside, l2))
		if err := gate.Gateway.SetUp("eth6", false); err != nil {
			t.Fatal(err)
		}
		change := gate.during(t, func() { gate.run(t, "tap_in", ctx, frame).unchanged(t, ctx, frame) })
		want := copied(n)
		want.refused = n
		change.mirror(t, "ids", "tap_in", want)
		change.target(t, "ids", l2, want)
		if err := gate.Gateway.SetUp("eth6", true); err != nil {
			t.Fatal(err)
		}
		gate.waitCarrier(t, "eth6")
	})
	t.Run("interface deleted", func(t *testing.T) {
		gate.applyResolved(t, mirror("ids", inside, l2))
		err := gate.Gateway.Do(func() error {
			l, err := netlink.LinkByName("eth6")
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		})
		if err != nil {
			t.Fatal(err)
		}
		change := gate.during(t, func() { gate.run(t, "tap_in", ctx, frame).unchanged(t, ctx, frame) })
		change.mirror(t, "ids", "tap_in", skipped("clone_error", n))
		change.target(t, "ids", l2, skipped("clone_error", n))
		// For the tests behind this one.
		if err := gate.addEth6(); err != nil {
			t.Fatal(err)
		}
		gate.waitCarrier(t, "eth6")
		if gate.viaEth6, err = newTap(gate.Sensor, "eth1"); err != nil {
			t.Fatal(err)
		}
		gate.apply(t, mirror("ids", inside, l2))
		gate.run(t, "tap_in", ctx, frame)
		gate.viaEth6.copies(t, 1)
	})
}

func (r *rig) waitCarrier(t *testing.T, ifname string) {
	t.Helper()
	err := waitUntil(func() bool {
		up := false
		_ = r.Gateway.Do(func() error {
			l, err := netlink.LinkByName(ifname)
			up = err == nil && l.Attrs().RawFlags&0x10000 != 0 // IFF_LOWER_UP
			return err
		})
		return up
	})
	if err != nil {
		t.Fatalf("%s has no carrier: %v", ifname, err)
	}
}

// dropDelivery takes the delivery program from an interface, as a stranger could.
func (r *rig) dropDelivery(t *testing.T, ifname string, ifindex int) {
	t.Helper()
	pin := filepath.Join(r.dir, "links", fmt.Sprint(ifindex), "tapgate_dmz_out")
	if l, err := link.LoadPinnedLink(pin, nil); err == nil {
		defer l.Close()
		if err := l.Detach(); err != nil {
			t.Fatal(err)
		}
		return
	}
	err := r.Gateway.Do(func() error {
		l, err := netlink.LinkByName(ifname)
		if err != nil {
			return err
		}
		filters, err := netlink.FilterList(l, netlink.HANDLE_MIN_EGRESS)
		if err != nil {
			return err
		}
		for _, f := range filters {
			if err := netlink.FilterDel(f); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What dmz egress does with packets that no tap sent it.
func TestDeliverOthers(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, via))
	const magic, ask = copyMagic << 8, 3 // TG_TASK_ASK
	frame := plainPacket()
	for _, c := range []struct {
		name    string
		ctx     skb
		verdict int32
		reason  string // on the dmz interface; "" is nobody's
	}{
		{"the gateway's own", skb{Ifindex: dmz}, next, "pass_host"},
		{"magic without mark", skb{Ifindex: dmz, Cb: [5]uint32{magic}}, next, "pass_host"},
		{"copy that was delivered above", skb{Ifindex: dmz, Mark: copyMark}, next, ""},
		{"copy that was delivered above, cb of others", skb{Ifindex: dmz, Mark: copyMark, Cb: [5]uint32{^uint32(0)}}, next, ""},
		{"question for a target that is not", skb{Ifindex: dmz, Mark: copyMark, Cb: [5]uint32{magic | ask, 0, 0, 0, 255}}, shot, ""},
		{"question for a target of another interface", skb{Ifindex: dmz2, Mark: copyMark, Cb: [5]uint32{magic | ask}}, shot, ""},
		{"not a member", skb{}, next, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := gate.outsiders(t, "dmz_out")
			change := gate.during(t, func() {
				if out := gate.run(t, "dmz_out", c.ctx, frame); out.verdict != c.verdict || !bytes.Equal(out.data, frame) {
					t.Errorf("verdict %d, want %d; packet\n%x, was\n%x", out.verdict, c.verdict, out.data, frame)
				}
			})
			if c.reason != "" {
				// The gateway's kernel may report its groups meanwhile.
				if got := change.reasons(dmz, "dmz_out"); got[c.reason] == 0 || got["drop_copy_failed"] != 0 {
					t.Errorf("reasons counted by eth2: %v, want %s", got, c.reason)
				}
			} else if got := gate.outsiders(t, "dmz_out") - before; got != 1 {
				t.Errorf("%d packets counted for no member, want 1", got)
			}
		})
	}
}
