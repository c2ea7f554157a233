package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

// A neighbour gets another MAC, on either side, and says so or keeps silent: packets
// of flows on the fast path follow it as they do by the stack, and no flow breaks.
func TestFastNeighbourChanges(t *testing.T) {
	t.Parallel()
	for _, forwarding := range []string{"", forwardKernel} {
		t.Run("forwarding "+forwarding, func(t *testing.T) {
			t.Parallel()
			g := newDirect(t, lab.NoSensor())
			g.forwarding = forwarding
			// The kernel asks again after some seconds, and not after half a minute.
			for _, dir := range []string{"net/ipv4/neigh/", "net/ipv6/neigh/"} {
				for _, dev := range []string{"eth0", "eth3"} {
					for name, value := range map[string]string{"base_reachable_time_ms": "1000", "delay_first_probe_time": "1", "retrans_time_ms": "200"} {
						if err := g.Gateway.Sysctl(dir+dev+"/"+name, value); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			g.apply(fastHosts)
			k := newTalk(t)
			for _, v6 := range []bool{false, true} {
				far := netip.AddrPortFrom(addrOf(g.out[0], v6), 0).String()
				k.addTCP(g, fmt.Sprintf("TCP, IPv6 %v", v6), g.in[0], v6, netip.MustParseAddrPort(echoTCP(t, g.out[0], far)))
				k.addAgain(g, fmt.Sprintf("UDP, IPv6 %v", v6), v6, netip.MustParseAddrPort(echoUDP(t, g.out[0], far)))
			}
			k.allGoOn("at the beginning")
			for i, h := range []*lab.Host{g.out[0], g.in[0], g.out[0], g.in[0]} {
				silent := i > 1
				mac := net.HardwareAddr{2, 0, 0, 0x77, byte(i), 1}
				if err := h.SetMAC("eth0", mac); err != nil {
					t.Fatal(err)
				}
				what := fmt.Sprintf("with another MAC of %s, silent: %v", h.Name, silent)
				if !silent {
					all := netip.MustParseAddr("ff02::1")
					err := h.Send(pkt.ARPRequest(mac, h.Addr, h.Addr),
						pkt.AdvertFrame(mac, net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, all, 0x20, h.Addr6))
					if err != nil {
						t.Fatal(err)
					}
				}
				k.allGoOn(what)
				// And by the path that they took before.
				before := g.counts()
				k.allGoOn("later " + what)
				after := g.counts()
				for _, place := range []string{"eth3 in", "eth0 in"} {
					if fast := after[place].fast - before[place].fast; (fast > 0) != g.fastly() {
						t.Errorf("%s: %d packets took the fast path at %s", what, fast, place)
					}
				}
			}
		})
	}
}

// addAgain is a UDP conversation that says a word again which is not answered.
func (k *talk) addAgain(g *gate, name string, v6 bool, at netip.AddrPort) {
	k.t.Helper()
	c := g.connectedUDP(g.in[0], netip.AddrPortFrom(addrOf(g.in[0], v6), 0), at)
	k.add(name, func(n int) error {
		word, got := fmt.Sprintf("%s %d", name, n), make([]byte, 2048)
		for end := time.Now().Add(2 * gateWait); time.Now().Before(end); {
			if _, err := c.Write([]byte(word)); err != nil {
				continue // told that nobody is there, for now
			}
			_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			if m, err := c.Read(got); err == nil && string(got[:m]) == word {
				return nil
			}
		}
		return fmt.Errorf("no answer to %q", word)
	})
}
