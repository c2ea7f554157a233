package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// smallDisk is a folder on a filesystem of this size, and how to make that another one.
func smallDisk(t *testing.T, size string) (dir string, resize func(size string)) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount("test", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir, func(size string) {
		t.Helper()
		if err := unix.Mount("test", dir, "tmpfs", unix.MS_REMOUNT, "size="+size); err != nil {
			t.Fatal(err)
		}
	}
}

// On a disk that is full each event is in the log or counted there as missing, once there
// is room again; until then the agent says so, and goes on. An agent that ends while the
// disk is full says how much is missing in its own log.
func TestFlowLogFullDisk(t *testing.T) {
	t.Parallel()
	g := newGate(t, masquerades)
	dir, resize := smallDisk(t, "64k")
	file := filepath.Join(dir, "flows.json")
	a := g.agent(nil, "--log-flows", file)
	retry(t, func() error { return g.hasRing(true) })
	c := g.udpSocket(g.in[0], netip.AddrPortFrom(g.in[0].Addr, 0))
	port := uint16(10000)
	send := func(n int) {
		if err := c.SetDeadline(time.Now().Add(gateWait)); err != nil {
			t.Fatal(err)
		}
		for range n {
			port++
			// An ICMP error about an earlier one is no matter.
			_, _ = c.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(g.out[0].Addr, port))
		}
	}
	send(500) // lines of some 300 bytes
	a.says("no space left on device")
	g.must("flows", "flush", "--all")
	if s := g.status(); len(s.Problems) > 0 {
		t.Errorf("problems: %q", s.Problems)
	}

	resize("8m")
	g.mapUDP(g.station(atInside, 0), 5000, g.station(atOutside, 0), 53, false)
	g.must("flows", "flush", "--all")
	made := g.status().Gateway.Created
	retry(t, func() error {
		raw, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var told, missing uint64
		torn := 0
		for line := range bytes.Lines(raw) {
			var l loggedLine
			switch err := json.Unmarshal(line, &l); {
			case err != nil:
				torn++
			case l.Event == "start", l.Event == "end":
				told++
			case l.Event == "lost":
				missing += l.Count
			}
		}
		if told+missing != 2*made || missing == 0 || torn > 1 {
			return fmt.Errorf("%d are told, %d missing, of %d flows; %d lines are torn", told, missing, made, torn)
		}
		return nil
	})

	if err := os.WriteFile(filepath.Join(dir, "fill"), make([]byte, 16<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	send(100) // more than its last page has room for
	a.end()
	a.says("events are missing at its end")
}

// Whoever takes the log and reads nothing more keeps nobody from changing the gateway: the
// agent has more to tell than a FIFO holds.
func TestFlowLogReaderHangs(t *testing.T) {
	t.Parallel()
	g := newGate(t, masquerades)
	fifo := filepath.Join(g.Dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	c := g.udpSocket(g.in[0], netip.AddrPortFrom(g.in[0].Addr, 0))
	for port := range uint16(500) { // lines of some 300 bytes
		_, _ = c.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(g.out[0].Addr, 10000+port))
	}
	retry(t, func() error {
		if n := g.status().Gateway.Flows; n < 400 {
			return fmt.Errorf("%d flows", n)
		}
		return nil
	})
	a := g.agent(nil, "--log-flows", fifo)
	retry(t, func() error { return g.hasRing(true) })
	full := func() bool {
		n, err := unix.IoctlGetInt(int(reader.Fd()), unix.TIOCINQ)
		return err == nil && n > 1<<15
	}
	waitFor(t, "the FIFO fills", full)
	for range 3 {
		g.must("forward", "add", "web", "--in", "external", "--proto", "tcp", "--port", "80", "--to", "192.168.3.2:80")
		g.must("forward", "del", "web")
	}
	reader.Close() // its writer ends
	a.end()
}
