package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"tapgate/loader"
)

const masquerades = gateZones + "nat:\n  masquerade:\n    - {name: all, from: internal, to: external}\n"

// loggedLine is one of the log of translations, of any kind.
type loggedLine struct {
	loader.TranslationEvent
	Reason string `json:"reason"`
	Count  uint64 `json:"count"`
	Starts uint64 `json:"starts"`
	Ends   uint64 `json:"ends"`
}

// flowLines waits until the log is as it shall be.
func (g *gate) flowLines(file string, is func([]loggedLine) error) (lines []loggedLine) {
	g.t.Helper()
	retry(g.t, func() error {
		if _, err := os.Stat(file); err != nil {
			return err
		}
		lines = jsonLines[loggedLine](g.t, file)
		return is(lines)
	})
	return lines
}

func countLines(lines []loggedLine) (starts, ends, lostStarts, lostEnds uint64) {
	for _, l := range lines {
		switch l.Event {
		case "start":
			starts++
		case "end":
			ends++
		case "lost":
			lostStarts, lostEnds = lostStarts+l.Starts, lostEnds+l.Ends
		}
	}
	return starts, ends, lostStarts, lostEnds
}

// whoami answers datagrams and ends connections, as both of a host's servers that it
// returns. What a client sends comes back as the endpoint that it came from.
func (g *gate) whoami() (udp, tcp netip.AddrPort) {
	g.t.Helper()
	at := netip.AddrPortFrom(g.out[0].Addr, 0)
	c := g.udpSocket(g.out[0], at)
	go func() {
		buf := make([]byte, 64)
		for {
			_, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort([]byte(netip.AddrPortFrom(from.Addr().Unmap(), from.Port()).String()), from)
		}
	}()
	tcp, accepted := g.listen(g.out[0], at)
	go func() {
		for c := range accepted {
			_, _ = io.WriteString(c, c.RemoteAddr().String())
			c.Close()
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).AddrPort(), tcp
}

// Of thousands of flows that come within a second or two, the log has each start and
// each end, once, with the endpoints that both sides have seen.
func TestFlowLogMissesNone(t *testing.T) {
	t.Parallel()
	const each = 1000
	g := newGate(t, masquerades)
	file := filepath.Join(g.Dir, "flows.json")
	a := g.agent(nil, "--listen", "", "--log-flows", file)
	udp, tcp := g.whoami()
	retry(t, func() error { return g.hasRing(true) })

	// seen is the outside endpoint of each inside one.
	seen := map[string]string{}
	var mu sync.Mutex
	talk := func(network string, to netip.AddrPort) error {
		c, err := net.Dial(network, to.String())
		if err != nil {
			return err
		}
		t.Cleanup(func() { c.Close() }) // not before: nobody else gets its port
		if err := c.SetDeadline(time.Now().Add(gateWait)); err != nil {
			return err
		}
		if network == "udp" {
			if _, err := io.WriteString(c, "who am I?"); err != nil {
				return err
			}
		}
		buf := make([]byte, 64)
		n, err := c.Read(buf)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		seen[network+" "+c.LocalAddr().String()] = string(buf[:n])
		return nil
	}
	start := time.Now()
	var talkers sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		talkers.Go(func() {
			errs[i] = g.in[0].Do(func() error {
				for range each / len(errs) {
					if err := errors.Join(talk("udp", udp), talk("tcp", tcp)); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
	talkers.Wait()
	took := time.Since(start)
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d flows within %v", len(seen), took)
	g.must("flows", "flush", "--all")
	lines := g.flowLines(file, func(lines []loggedLine) error {
		if starts, ends, _, _ := countLines(lines); starts < uint64(len(seen)) || ends < uint64(len(seen)) {
			return fmt.Errorf("%d starts and %d ends of %d flows", starts, ends, len(seen))
		}
		return nil
	})
	a.end()
	told := map[string]string{}
	for _, l := range lines {
		if l.Event == "begin" {
			continue
		}
		key := l.Proto + " " + l.Inside
		if seen[key] != l.Outside || l.Rule != "all" {
			t.Errorf("%s: outside it was %s: %+v", key, seen[key], l)
		}
		told[key] += l.Event + " "
		if l.Event == "end" && l.Proto == "udp" && (l.PacketsOut != 1 || l.PacketsIn != 1 || l.BytesOut != 14+20+8+9) {
			t.Errorf("%s: %+v", key, l.TranslationTotals)
		}
	}
	for key := range seen {
		if told[key] != "start end " {
			t.Errorf("%s: told %q", key, told[key])
		}
	}
	if len(seen) != 2*each || len(told) != len(seen) {
		t.Errorf("%d flows, %d in the log", len(seen), len(told))
	}
}

// lostBy is what the programs could not tell.
func (g *gate) lostBy() (n [2]uint64) {
	g.t.Helper()
	m := pinnedMap(g.t, filepath.Join(g.stateDir(), "maps", "tg_log_lost"))
	defer m.Close()
	if err := m.Lookup(uint32(0), &n); err != nil {
		g.t.Fatal(err)
	}
	return n
}

// What an agent that does not keep up has missed, its log says to the last one.
func TestFlowLogSaysWhatIsLost(t *testing.T) {
	t.Parallel()
	g := newGate(t, masquerades)
	file := filepath.Join(g.Dir, "flows.json")
	a := g.agent(nil, "--log-flows", file)
	retry(t, func() error { return g.hasRing(true) })

	a.signal(syscall.SIGSTOP)
	sockets := []*net.UDPConn{g.udpSocket(g.in[0], netip.AddrPortFrom(g.in[0].Addr, 0)), g.udpSocket(g.in[1], netip.AddrPortFrom(g.in[1].Addr, 0))}
	port := uint16(0)
	retry(t, func() error {
		for range 10000 {
			port++
			for _, c := range sockets {
				for _, h := range g.out {
					// An ICMP error about an earlier one is no matter.
					_, _ = c.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(h.Addr, max(port, 1)))
				}
			}
		}
		if n := g.lostBy(); n[0] < 1000 {
			return fmt.Errorf("lost are %d", n)
		}
		return nil
	})
	a.signal(syscall.SIGCONT)
	g.must("flows", "flush", "--all")
	retry(t, func() error {
		g.sweep()
		if gw := g.status().Gateway; gw.Flows > 0 || gw.Created != gw.Expired {
			return fmt.Errorf("%+v", gw)
		}
		return nil
	})
	made := g.status().Gateway.Created
	lines := g.flowLines(file, func(lines []loggedLine) error {
		starts, ends, lostStarts, lostEnds := countLines(lines)
		if starts+lostStarts != made || ends+lostEnds != made {
			return fmt.Errorf("%d starts and %d lost, %d ends and %d lost, of %d flows", starts, lostStarts, ends, lostEnds, made)
		}
		return nil
	})
	_, _, lostStarts, lostEnds := countLines(lines)
	if lost := g.lostBy(); lost != [2]uint64{lostStarts, lostEnds} || lostStarts < 1000 {
		t.Errorf("lost are %d, told %d and %d", lost, lostStarts, lostEnds)
	}
	t.Logf("%d flows, %d starts and %d ends lost", made, lostStarts, lostEnds)
	if i := slices.IndexFunc(lines, func(l loggedLine) bool { return l.Event == "lost" }); i < 30000 || lines[i].Reason != "behind" || lines[i].Count != lines[i].Starts+lines[i].Ends {
		t.Errorf("line %d: %+v", i, lines[i])
	}
	text := string(get(t, g.client(), agentMetrics))
	if want := fmt.Sprintf("tapgate_flow_log_lost_total{reason=\"behind\"} %s\n", strconv.FormatFloat(float64(lostStarts+lostEnds), 'g', -1, 64)); !strings.Contains(text, want) {
		t.Errorf("the metrics do not have %q", want)
	}
	a.end()
}

// hasRing says whether the programs tell.
func (g *gate) hasRing(want bool) error {
	m := pinnedMap(g.t, filepath.Join(g.stateDir(), "maps", "tg_log"))
	defer m.Close()
	var ring *ebpf.Map
	err := m.Lookup(uint32(0), &ring)
	if err == nil {
		ring.Close()
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	if has := err == nil; has != want {
		return fmt.Errorf("programs tell: %v", has)
	}
	return nil
}

// An agent that is killed misses nothing of what comes until the next one: that
// tells it, with the times at which it was. One that ends has the programs tell no more.
func TestFlowLogKilled(t *testing.T) {
	t.Parallel()
	g := newGate(t, masquerades)
	in, out := g.station(atInside, 0), g.station(atOutside, 0)
	file := filepath.Join(g.Dir, "flows.json")
	if err := g.hasRing(false); err != nil {
		t.Error(err)
	}
	a := g.agent(nil, "--listen", "", "--log-flows", file)
	find := func(file, events string, outside netip.AddrPort) (found []loggedLine) {
		t.Helper()
		g.flowLines(file, func(lines []loggedLine) error {
			told := ""
			found = nil
			for _, l := range lines {
				if l.Outside == outside.String() {
					told += l.Event + " "
					found = append(found, l)
				}
			}
			if told != events {
				return fmt.Errorf("told of %s: %q, want %q", outside, told, events)
			}
			return nil
		})
		return found
	}
	retry(t, func() error { return g.hasRing(true) })
	before := g.mapUDP(in, 5000, out, 53, false)
	ends := g.mapUDP(in, 5001, out, 53, false)
	find(file, "start ", before)
	find(file, "start ", ends)
	a.kill()
	if err := g.hasRing(true); err != nil {
		t.Error(err)
	}
	meanwhile := g.mapUDP(in, 5002, out, 53, false)
	g.flushPort(in.at(false, 5001))
	killed := time.Now()

	a = g.agent(nil, "--listen", "", "--log-flows", file)
	find(file, "start present ", before)
	find(file, "start end ", ends)
	if l := find(file, "start ", meanwhile); l[0].Time.After(killed) {
		t.Errorf("the time is that of the next agent: %+v", l)
	}
	a.end()
	if err := g.hasRing(false); err != nil {
		t.Error(err)
	}
	silent := g.mapUDP(in, 5003, out, 53, false)
	a = g.agent(nil, "--listen", "", "--log-flows", file)
	find(file, "present ", silent)
	find(file, "start present present ", before)
	a.end()
	for _, l := range jsonLines[loggedLine](t, file) {
		if l.Event == "lost" {
			t.Errorf("%+v", l)
		}
	}
}
