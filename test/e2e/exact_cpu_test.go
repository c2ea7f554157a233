package e2e

import (
	bin "encoding/binary"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"tapgate/test/lab"

	"tapgate/loader"
)

// onOneCPU keeps this process, what it starts, and thereby the whole lab on
// one CPU: only then is the order in which frames were sent one fact that all
// captures agree on. (But for TCP's timers: they may run elsewhere, so that
// traffic here keeps clear of full windows.)
func onOneCPU(t *testing.T) {
	t.Helper()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	var one unix.CPUSet
	for cpu := 0; ; cpu++ {
		if before.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	setThreads(t, &one)
	t.Cleanup(func() { setThreads(t, &before) })
}

// setThreads moves all threads; new ones inherit from those that make them.
func setThreads(t *testing.T, set *unix.CPUSet) {
	t.Helper()
	done := map[string]bool{}
	for more := true; more; {
		more = false
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range threads {
			if done[e.Name()] {
				continue
			}
			done[e.Name()], more = true, true
			tid, err := strconv.Atoi(e.Name())
			if err == nil {
				err = unix.SchedSetaffinity(tid, set)
			}
			if err != nil && err != unix.ESRCH {
				t.Fatalf("move thread %s: %v", e.Name(), err)
			}
		}
	}
}

// masqueraded is a gateway with the kernel's NAT whose sender's captures show what
// is on the wire, in order: everything on one CPU, checksums whole.
func masqueraded(t *testing.T, kind loader.AttachKind) *gateway {
	t.Helper()
	onOneCPU(t)
	g := newGateway(t)
	g.kind = kind
	if err := g.Masquerade(); err != nil {
		t.Fatal(err)
	}
	wholeChecksums(g)
	return g
}

// wholeChecksums has every sender finish its checksums, and so cut its own
// segments: what their captures show is then what is on the wire.
func wholeChecksums(g *gateway) {
	g.t.Helper()
	hosts := append(append([]*lab.Host{}, g.Servers...), g.Outside...)
	if g.Second != nil {
		hosts = append(hosts, g.Second)
	}
	for _, h := range hosts {
		if err := h.SetTxChecksum("eth0", false); err != nil {
			g.t.Fatal(err)
		}
	}
}

func be16(b []byte) int { return int(bin.BigEndian.Uint16(b)) }
