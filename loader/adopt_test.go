package loader

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tapgate/test/lab"
)

// adoptWait is for exchanges that may need a retransmission or two.
const adoptWait = 20 * time.Second

// talk is a connection between a host inside and one outside.
type talk struct {
	t       *testing.T
	in, out net.Conn
}

func (b *natBench) dial(network string, from, at *lab.Host, to netip.AddrPort) talk {
	b.t.Helper()
	var l net.Listener
	c := talk{t: b.t}
	err := at.Do(func() (err error) {
		l, err = net.Listen(network, netip.AddrPortFrom(netip.IPv4Unspecified(), to.Port()).String())
		return err
	})
	if err == nil {
		defer l.Close()
		err = from.Do(func() (err error) {
			c.in, err = net.DialTimeout(network, to.String(), adoptWait)
			return err
		})
	}
	if err == nil {
		c.out, err = l.Accept()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.in.Close(); c.out.Close() })
	return c
}

// goesOn has both ends speak; the one that listens first, if it is to show that
// the other need not begin.
func (c talk) goesOn(what string, first, second net.Conn) {
	c.t.Helper()
	for i, pair := range [][2]net.Conn{{first, second}, {second, first}} {
		text := []byte(fmt.Sprintf("%s, %d", what, i))
		got := make([]byte, len(text))
		_, err := pair[0].Write(text)
		err = errors.Join(err, pair[1].SetReadDeadline(time.Now().Add(adoptWait)))
		if err == nil {
			_, err = io.ReadFull(pair[1], got)
		}
		if err != nil || string(got) != string(text) {
			c.t.Fatalf("%s: the connection does not go on: %q, %v", text, got, err)
		}
	}
}

// recipe is the host's own NAT and a firewall that lets in what was begun inside
// or is forwarded.
const recipe = `table ip recipe {
	chain post { type nat hook postrouting priority srcnat; oifname "eth0" masquerade fully-random; }
	chain pre { type nat hook prerouting priority dstnat; iifname "eth0" tcp dport 3389 dnat to 192.168.3.2:4389; }
}
`

const firewall = `table ip firewall {
	chain forward { type filter hook forward priority filter
		ct state invalid drop
		iifname "eth0" ct state new ct status ! dnat tcp dport != 4389 drop
	}
}
`

func (b *natBench) nft(script string) {
	b.t.Helper()
	cmd := b.Gateway.Command(b.Context(), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("nft: %v\n%s", err, out)
	}
}

// hooks are chains that keep the kernel's NAT at work without the recipe, together
// with the firewall, which has connections tracked: firewalld always has both.
const hooks = `table ip hooks {
	chain post { type nat hook postrouting priority srcnat + 10; }
	chain pre { type nat hook prerouting priority dstnat + 10; }
}
`

// TestCutOver: from the kernel's NAT to ours and back, and open connections go on.
// Where nothing else keeps the kernel's NAT at work, its rules go last and come
// first: in between the host would answer RST to what nobody translates.
func TestCutOver(t *testing.T) {
	for _, c := range []struct {
		name       string
		host       string // what it has beside the recipe
		rulesFirst bool
	}{
		{"bare", "", false},
		{"firewall", firewall, false},
		{"firewall, rules first", hooks + firewall, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newNATBench(t)
			b.nft(recipe)
			b.nft(c.host)
			cfg := natConfig()
			cfg.NAT.Masquerades[0].IPv6 = true
			cfg.NAT.Forwards = []Forward{{
				Name: "rdp", In: "external", Proto: "tcp", Ports: PortRange{3389, 3389},
				To: netip.MustParseAddr("192.168.3.2"), ToPort: 4389,
			}}
			remote := netip.AddrPortFrom(b.Outside[0].Interface("eth0").Addr.Addr(), 7000)
			asked := netip.AddrPortFrom(b.Gateway.Interface("eth0").Addr.Addr(), 3389)
			down, up := b.dial("tcp", b.Servers[0], b.Outside[0], remote), b.dial("tcp", b.Servers[0], b.Outside[0], remote)
			forwarded := b.forwarded(asked)
			datagrams := b.datagrams(remote)
			all := func(what string) {
				t.Helper()
				datagrams.goesOn(what+", datagrams out", datagrams.in, datagrams.out)
				datagrams.goesOn(what+", datagrams in", datagrams.out, datagrams.in)
				down.goesOn(what+", down", down.out, down.in)
				up.goesOn(what+", up", up.in, up.out)
				forwarded.goesOn(what+", forwarded", forwarded.in, forwarded.out)
				forwarded.goesOn(what+", forwarded, back", forwarded.out, forwarded.in)
			}
			all("before")
			const away = "delete table ip recipe"
			if c.rulesFirst {
				b.nft(away)
			}
			b.opt.CutOver = true // the host's rule is still there
			res := b.apply(cfg)
			t.Log(res.Changes, res.Warnings)
			if !c.rulesFirst {
				b.nft(away)
			}
			all("ours")
			b.open(func(g *Gateway) error {
				flows, err := g.Flows(FlowFilter{})
				if err != nil {
					return err
				}
				byRule := map[string]int{}
				for _, f := range flows {
					t.Logf("%+v", f)
					byRule[f.Rule+" "+f.Origin+" "+f.State]++
				}
				if byRule["internal-external adopted established"] != 2 || byRule["rdp adopted established"] != 1 ||
					byRule["internal-external adopted answered"] != 1 || len(flows) != 4 {
					return fmt.Errorf("flows: %v", byRule)
				}
				return nil
			})
			b.pingOut(1) // a query, whose entry is taken out
			if n, err := b.Servers[0].Ping(b.Context(), b.Outside[0].Interface("eth0").Addr6.Addr(), 1); err != nil || n != 1 {
				t.Fatalf("%d replies over IPv6: %v", n, err)
			}
			// One more that is ours from its beginning.
			later := b.dial("tcp", b.Servers[0], b.Outside[0], remote)
			later.goesOn("later", later.in, later.out)
			if !c.rulesFirst {
				b.nft(recipe)
			}
			res, err := Detach(b.opt)
			if err != nil {
				t.Fatal(err)
			}
			t.Log(res.Changes, res.Warnings)
			if len(res.Warnings) > 0 {
				t.Errorf("detach warns: %q", res.Warnings)
			}
			if c.rulesFirst {
				b.nft(recipe)
			}
			all("back")
			later.goesOn("later, back", later.out, later.in)
		})
	}
}

// forwarded connects a host outside with a server by way of a port of the gateway.
// Its ends are named as for other connections.
func (b *natBench) forwarded(asked netip.AddrPort) talk {
	b.t.Helper()
	var l net.Listener
	c := talk{t: b.t}
	err := b.Servers[0].Do(func() (err error) {
		l, err = net.Listen("tcp", "192.168.3.2:4389")
		return err
	})
	if err == nil {
		defer l.Close()
		err = b.Outside[0].Do(func() (err error) {
			c.out, err = net.DialTimeout("tcp", asked.String(), adoptWait)
			return err
		})
	}
	if err == nil {
		c.in, err = l.Accept()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.in.Close(); c.out.Close() })
	return c
}

// datagrams are UDP between sockets that know each other's address and port: the
// one that the server has outside must stay.
func (b *natBench) datagrams(remote netip.AddrPort) talk {
	b.t.Helper()
	var outside *net.UDPConn
	c := talk{t: b.t}
	err := b.Outside[0].Do(func() (err error) {
		outside, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(remote))
		return err
	})
	if err == nil {
		err = b.Servers[0].Do(func() (err error) {
			c.in, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(remote))
			return err
		})
	}
	if err == nil {
		_, err = c.in.Write([]byte("first"))
	}
	var from netip.AddrPort
	if err == nil {
		err = outside.SetReadDeadline(time.Now().Add(adoptWait))
	}
	if err == nil {
		_, from, err = outside.ReadFromUDPAddrPort(make([]byte, 100))
	}
	if err == nil {
		err = outside.Close()
	}
	if err == nil {
		err = b.Outside[0].Do(func() (err error) {
			c.out, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(remote), net.UDPAddrFromAddrPort(from))
			return err
		})
	}
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.in.Close(); c.out.Close() })
	return c
}
