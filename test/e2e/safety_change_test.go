package e2e

import (
	bin "encoding/binary"
	"testing"
	"time"

	"tapgate/loader"
	"tapgate/test/lab"
)

// streamNumber is the number of a packet of production, and its direction.
func streamNumber(f lab.Frame) (number uint64, up, ok bool) {
	p := f.Payload()
	if kind, _ := f.EtherType(); kind != 0x0800 || len(p) < 36 || p[9] != 17 {
		return 0, false, false
	}
	src, dst := bin.BigEndian.Uint16(p[20:]), bin.BigEndian.Uint16(p[22:])
	return bin.BigEndian.Uint64(p[28:]), dst == streamPort, src == streamPort || dst == streamPort
}

// Promise 6: mirrors come and go 200 times while packets flow: production and
// the mirror that stays miss none.
func TestSafetyManyChanges(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newGateway(t)
		g.kind = kind
		p := newProduction(g)
		g.apply(example)
		p.exchange(1)
		early := g.mirror("ids") // hosts may speak between the readings and both ends of the capture
		dump, err := g.Sensor.Tcpdump("eth0", "-Q", "in", "ether", "dst", g.Sensor.MAC.String())
		if err != nil {
			t.Fatal(err)
		}
		p.up.pace, p.down.pace = 10*time.Millisecond, 10*time.Millisecond
		sent := [2]uint64{p.up.sent, p.down.sent}
		before := g.mirror("ids")
		p.during(func() {
			for i := range 200 {
				if i == 100 {
					g.must("mirror", "add", "ids", "--l2", "eth2", "--mac", "02:00:5e:00:53:02")
				}
				g.must("mirror", "add", "second", "--zone", "internal", "--l2", "eth2", "--mac", "02:00:5e:00:53:01")
				g.must("mirror", "del", "second")
			}
			g.must("mirror", "del", "ids", "--l2", "eth2", "--mac", "02:00:5e:00:53:02")
		})
		p.check()

		is := g.mirror("ids")
		g.checkLedgers()
		copied := is.Copied.Packets - before.Copied.Packets
		if is.Matched != is.Copied {
			t.Errorf("copies were skipped: %+v", is.Ledger)
		}
		frames, err := dump.WaitFor(func(frames []lab.Frame) bool { return len(copiesOf(frames)) >= int(copied) }, patience)
		if err != nil {
			t.Fatalf("%d of %d copies: %v", len(copiesOf(frames)), copied, err)
		}
		if frames, err = dump.Stop(); err != nil {
			t.Fatal(err)
		}
		most := g.mirror("ids").Copied.Packets - early.Copied.Packets
		if n := len(copiesOf(frames)); n < int(copied) || n > int(most) {
			t.Errorf("%d copies at the sensor, %d to %d in the ledger", n, copied, most)
		}
		seen := map[bool]map[uint64]int{true: {}, false: {}}
		for _, f := range frames {
			if number, up, ok := streamNumber(f); ok {
				seen[up][number]++
			}
		}
		for i, flow := range []*flow{p.up, p.down} {
			for number := sent[i]; number < flow.sent; number++ {
				if n := seen[flow == p.up][number]; n != 1 {
					t.Fatalf("%s: the sensor got packet %d %d times", flow.name, number, n)
				}
			}
			t.Logf("%s: packets %d to %d at the sensor once each", flow.name, sent[i], flow.sent-1)
		}
	})
}
