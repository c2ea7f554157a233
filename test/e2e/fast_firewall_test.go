package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tapgate/test/kernels"
	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

// Ports of the tests about host firewalls: what the host's rules let begin from
// outside, and what they do not let begin from inside.
const (
	hostAdmits = 4000
	hostDenies = 9999
)

const fastHosts = `
zones:
  external: {interfaces: [eth0]}
  internal: {interfaces: [eth3]}
nat:
  masquerade:
    - {from: internal, to: external, ipv6: true}
  forwards:
    - {name: tcp, in: external, proto: tcp, port: 4000, to: "192.168.3.2:4000"}
    - {name: tcp6, in: external, proto: tcp, port: 4000, to: "[2001:db8:3::2]:4000"}
`

// statefulRules are what hosts have: what conntrack cannot place is dropped, replies
// pass, and new flows need a rule.
const statefulRules = `table inet host {
	chain forward { type filter hook forward priority filter; policy drop
		ct state invalid counter drop
		ct state established,related accept
		meta l4proto { tcp, udp } th dport 9999 counter reject with icmpx type admin-prohibited
		iifname "eth3" oifname "eth0" accept
		iifname "eth0" oifname "eth3" tcp dport 4000 accept
	}
}`

// hostRules puts the rules of a host in force, before tapgate is.
var hostRules = map[string]func(g *gate){
	"nft": func(g *gate) {
		kernels.Require(g.t, "nft_masquerade")
		nft(g.t, g.gateway, statefulRules)
	},
	"firewalld": func(g *gate) {
		f, err := g.Gateway.StartFirewalld()
		if err != nil {
			g.t.Fatal(err)
		}
		// Its default rules, and what an admin has to say of a gateway.
		_, err = f.Shell(`
			firewall-cmd --permanent --zone=external --remove-masquerade
			firewall-cmd --permanent --zone=external --add-interface=eth0
			firewall-cmd --permanent --zone=internal --add-interface=eth3
			firewall-cmd --permanent --new-policy=out
			firewall-cmd --permanent --policy=out --add-ingress-zone=internal
			firewall-cmd --permanent --policy=out --add-egress-zone=external
			firewall-cmd --permanent --policy=out --set-target=ACCEPT
			firewall-cmd --permanent --policy=out --add-rich-rule='rule port port=9999 protocol=tcp reject'
			firewall-cmd --permanent --policy=out --add-rich-rule='rule port port=9999 protocol=udp reject'
			firewall-cmd --permanent --new-policy=in
			firewall-cmd --permanent --policy=in --add-ingress-zone=external
			firewall-cmd --permanent --policy=in --add-egress-zone=internal
			firewall-cmd --permanent --policy=in --set-target=CONTINUE
			firewall-cmd --permanent --policy=in --add-port=4000/tcp
			firewall-cmd --reload`)
		if err != nil {
			g.t.Fatal(err)
		}
	},
}

// hostFlows is a gateway with rules of its host, and conversations through it.
type hostFlows struct {
	*gate
	name string
	talk *talk
}

// Beside a running firewalld with its default rules, and nft rules that drop what is
// invalid: flows on the fast path live for longer than conntrack remembers one that
// it does not see, with much data, and when the stack gets them again: a fragment, one
// that is too big, another route, and "forwarding: kernel". Whether a flow may begin
// is still the host's to say.
//
// It takes more than two minutes, beside other tests.
func TestFastHostFirewalls(t *testing.T) {
	t.Parallel()
	var all []*hostFlows
	for _, name := range []string{"firewalld", "nft"} {
		g := newGateLab(t, lab.NoSensor())
		hostRules[name](g)
		g.apply(fastHosts)
		h := &hostFlows{gate: g, name: name, talk: newTalk(t)}
		h.begin()
		all = append(all, h)
	}
	each := func(what string, f func(h *hostFlows)) {
		t.Helper()
		for _, h := range all {
			f(h)
			h.goesOn(what)
		}
	}
	began := time.Now()
	each("at the beginning", (*hostFlows).decides)
	for _, s := range []time.Duration{15, 40, 80, 130} {
		time.Sleep(time.Until(began.Add(s * time.Second)))
		each(fmt.Sprintf("after %d s", s), func(h *hostFlows) { h.forwards() })
	}
	for _, h := range all {
		h.carried(100_000_000)
	}
	t.Logf("100 MB by each TCP connection, %.0f s of UDP", time.Since(began).Seconds())
	each("with fragments", (*hostFlows).fragments)
	each("with too big ones", (*hostFlows).tooBig)
	each("with another route", (*hostFlows).reroute)
	each("with new flows", (*hostFlows).decides)
	each("with forwarding by the kernel", func(h *hostFlows) { h.forward(forwardKernel) })
	each("fast again", func(h *hostFlows) { h.forward("") })
	for _, h := range all {
		h.talk.end()
		h.consistentOnceQuiet()
	}
}

// decides requires that the host's rules decide on new flows.
func (h *hostFlows) decides() {
	h.t.Helper()
	for _, v6 := range []bool{false, true} {
		in, out := h.pair()
		h.mapUDP(in, 5000, out, 9000, v6)
		h.connect(in, 5000, out, 9000, v6).talk()
		text := h.text()
		in.udp(5001, out.at(v6, hostDenies), text)
		in.tcp(5001, out.at(v6, hostDenies), pkt.SYN, 1, 0, text)
		h.unseen(text, out, in)
	}
}

// fragments has datagrams go in fragments over a flow of its own that is fast.
func (h *hostFlows) fragments() {
	h.t.Helper()
	for _, v6 := range []bool{false, true} {
		at := netip.MustParseAddrPort(echoUDP(h.t, h.out[1], netip.AddrPortFrom(addrOf(h.out[1], v6), 0).String()))
		c := h.connectedUDP(h.in[0], netip.AddrPortFrom(addrOf(h.in[0], v6), 0), at)
		for _, size := range []int{100, 100, 100, 3000, 100, 8000, 100} {
			if err := echoed(c, size); err != nil {
				h.t.Errorf("%s: %d bytes: %v", h.name, size, err)
			}
		}
	}
}

// tooBig narrows the way on both sides in turn: TCP learns, and what is not to be
// fragmented is told.
func (h *hostFlows) tooBig() {
	h.t.Helper()
	for _, ifname := range []string{"eth0", "eth3"} {
		h.narrowRoute(ifname, fmt.Sprintf(" mtu lock %d", narrow))
		h.goesOn("narrow " + ifname)
		for _, v6 := range []bool{false, true} {
			in, out := h.pair()
			ext := h.mapUDP(in, 5000, out, 9000, v6)
			h.answerUDP(out, 9000, ext, in, 5000)
			from, at, port, told := in, out.ip(v6), uint16(9000), in
			if ifname == "eth3" {
				from, at, port, told = out, ext.Addr(), ext.Port(), out
			}
			for range 2 {
				sent := from.raw(dontFragment(from.frame(at, pkt.UDP(map[bool]uint16{true: 9000, false: 5000}[ifname == "eth3"], port), pkt.Payload(1400))))
				h.aboutOwn(told.wantError(tooBigKind(v6)), sent)
			}
		}
		h.narrowRoute(ifname, "")
	}
}

// reroute has the gateway reach the far host by way of the other one outside, and
// directly again.
func (h *hostFlows) reroute() {
	h.t.Helper()
	if err := h.out[0].Sysctl("net/ipv4/ip_forward", "1"); err != nil {
		h.t.Fatal(err)
	}
	if err := h.out[0].Sysctl("net/ipv6/conf/all/forwarding", "1"); err != nil {
		h.t.Fatal(err)
	}
	for _, name := range []string{"all", "eth0"} {
		if err := h.out[0].Sysctl("net/ipv4/conf/"+name+"/send_redirects", "0"); err != nil {
			h.t.Fatal(err)
		}
	}
	far := []netip.Addr{h.out[1].Addr, h.out[1].Addr6}
	for i, a := range far {
		via := []netip.Addr{h.out[0].Addr, h.out[0].Addr6}[i]
		h.ip(h.Gateway, fmt.Sprintf("route add %s/%d via %s", a, a.BitLen(), via))
	}
	capture, err := h.out[0].Capture("eth0", lab.Incoming)
	if err != nil {
		h.t.Fatal(err)
	}
	h.goesOn("by the other router")
	_, err = capture.WaitFor(func(frames []lab.Frame) bool {
		seen := map[string]bool{}
		for _, f := range frames {
			if p, err := pkt.Parse(f.Data); err == nil && slices.Contains(far, p.Dst.Addr()) {
				seen[fmt.Sprint(p.Proto, p.Dst.Addr().Is6())] = true
			}
		}
		return len(seen) == 4
	}, gateWait)
	if err != nil {
		h.t.Errorf("%s: not everything goes by the other router: %v", h.name, err)
	}
	for _, a := range far {
		h.ip(h.Gateway, fmt.Sprintf("route del %s/%d", a, a.BitLen()))
	}
}

// forward switches how known flows are forwarded.
func (h *hostFlows) forward(how string) {
	h.t.Helper()
	h.forwarding = how
	h.apply(fastHosts)
	h.forwards()
}
