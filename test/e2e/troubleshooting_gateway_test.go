package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"tapgate/test/lab"
)

// troubleWith is the configuration with something else in it.
func troubleWith(pairs ...string) string { return strings.NewReplacer(pairs...).Replace(troubleConfig) }

const troubleMasquerade = "    - {from: internal, to: external}\n"

// What keeps packets of inside hosts from the outside, or from the fast path.
var gatewayAilments = map[string]ailment{
	"A policy drops it": {make: func(p *patient) {
		p.use(troubleConfig + "policies:\n  - {name: no-mail, from: internal, to: external, proto: tcp, ports: [25], action: drop}\n")
	}},
	"No policy lets it pass": {make: func(p *patient) { p.use(troubleConfig) }},
	"No masquerade rule translates it": {make: func(p *patient) {
		p.use(troubleWith(troubleMasquerade, "    - {from: mgmt, to: external}\n"))
	}},
	"The source is none of its zone": {make: func(p *patient) {
		p.use(troubleConfig)
		p.do("server", "ip address add 10.1.0.7/32 dev eth0")
		p.do("", "ip route add 10.1.0.0/16 via 192.168.3.2")
	}},
	"The flow table is full": {make: func(p *patient) {
		p.use(troubleWith("nat:\n", "nat:\n  max_flows: 16\n  max_flows_per_host: 16\n"))
		p.do("server", "ip address add 192.168.3.7/24 dev eth0")
		p.connects("192.168.3.2", 10)
		p.connects("192.168.3.7", 10)
	}},
	"One host has used up its share": {make: func(p *patient) {
		p.use(troubleWith("nat:\n", "nat:\n  max_flows_per_host: 16\n"))
		p.connects("192.168.3.2", 40)
	}},
	"The outside ports are used up": {make: func(p *patient) {
		p.use(troubleWith(troubleMasquerade, "    - {from: internal, to: external, ports: [\"61000-61003\"]}\n"))
		p.connects("192.168.3.2", 40)
	}},
	"The host's own firewall drops what is forwarded": {make: func(p *patient) {
		p.needs("nft")
		p.use(troubleConfig)
		p.do("", `nft 'table inet filter { chain forward { type filter hook forward priority 0; policy drop; }; }'`)
	}},
	"The kernel does not forward": {make: func(p *patient) {
		p.use(troubleConfig)
		p.do("", "sysctl -qw net.ipv4.ip_forward=0")
	}},
	"The kernel has no route": {make: func(p *patient) { p.use(troubleConfig) }},
	"The router does not answer": {make: func(p *patient) {
		p.use(troubleConfig)
		p.do("", "ip route add default via 203.0.113.254")
		p.runs("server", "ping -q -i 0.1 198.51.100.7")
	}},
	"The outside address has changed": {make: func(p *patient) {
		p.use(troubleConfig)
		p.do("", "ip address add 203.0.113.77/24 dev eth0", "ip address del 203.0.113.1/24 dev eth0")
		p.do("", "ip address show dev eth0 | grep -q 203.0.113.77 || ip address add 203.0.113.77/24 dev eth0")
	}},
	"The kernel takes the source for impossible": {make: func(p *patient) {
		p.use(troubleWith("internal: {interfaces: [eth3]}", "internal: {interfaces: [eth3], prefixes: [10.1.0.0/16]}"))
		p.do("server", "ip address add 10.1.0.7/32 dev eth0")
		p.do("", "ip route add default via 203.0.113.8", "sysctl -qw net.ipv4.conf.eth3.rp_filter=1")
	}},
	"It was idle for too long": {make: func(p *patient) {
		awaitUptime(p.t)
		p.use(troubleConfig)
		p.do("server", "echo hello >/dev/udp/203.0.113.8/5060")
		p.pass(100*time.Second, p.Servers[0].Addr)
	}},
	"Connection tracking takes fast flows for invalid": {make: func(p *patient) {
		p.needs("nft")
		p.do("", `nft 'table inet filter { chain forward { type filter hook forward priority 0; ct state invalid drop; }; }'`)
		p.use(troubleConfig)
		p.do("", "sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=0")
	}},

	"The configuration says kernel": {make: func(p *patient) { p.use("forwarding: kernel\n" + troubleConfig) }},
	"Another program is where packets come in": {make: func(p *patient) {
		newStranger(p.t, "eth3").filter(p.gateway, "eth3", false, true)
		p.use(troubleConfig)
	}},
	"An nft chain is where packets come in": {make: func(p *patient) {
		p.needs("nft")
		p.do("", `nft 'table netdev early { chain in { type filter hook ingress device eth3 priority 0; }; }'`)
		p.use(troubleConfig)
	}},
	"A routing rule asks for a mark": {make: func(p *patient) {
		p.do("", "ip rule add fwmark 7 table 77 priority 100")
		p.use(troubleConfig)
	}},
	"There are IPsec policies": {make: func(p *patient) {
		p.do("", "ip xfrm policy add src 192.168.3.0/24 dst 198.51.100.0/24 dir out tmpl src 203.0.113.1 dst 203.0.113.8 proto esp mode tunnel")
		p.use(troubleConfig)
	}},
	"The sysctls are to be kept": {make: func(p *patient) {
		p.needs("nft")
		p.do("", `nft 'table inet filter { chain forward { type filter hook forward priority 0; ct state invalid drop; }; }'`,
			"sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=0")
		p.use(troubleWith("nat:\n", "nat:\n  sysctls: keep\n"))
	}},
	"The reason came after apply": {make: func(p *patient) {
		p.use(troubleConfig)
		p.do("", "ip rule add fwmark 7 table 77 priority 100")
	}},
	"The flow is of a kind that the stack forwards": {make: func(p *patient) {
		p.use(troubleConfig)
		p.pings()
	}},

	"The way is narrower and nobody says so": {make: func(p *patient) {
		p.needs("nft", "curl")
		p.takesUploads()
		p.do("", "ip link set eth0 mtu 1400",
			`nft 'table inet wall { chain out { type filter hook output priority 0; icmp type destination-unreachable drop; }; }'`)
		p.use(troubleConfig)
	}},
}

// takesUploads has the outside say how many bytes it was sent.
func (p *patient) takesUploads() {
	p.t.Helper()
	var l net.Listener
	if err := p.Outside[0].Do(func() (err error) { l, err = net.Listen("tcp", "203.0.113.8:8080"); return err }); err != nil {
		p.t.Fatal(err)
	}
	s := &http.Server{ReadHeaderTimeout: gateWait, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%d bytes\n", n)
	})}
	go func() { _ = s.Serve(l) }() // until it is closed
	p.t.Cleanup(func() { s.Close() })
}

// connects has the server talk UDP with the outside from so many ports, as far as they
// get an answer.
func (p *patient) connects(source string, n int) {
	p.t.Helper()
	remote := netip.AddrPortFrom(p.Outside[0].Addr, 9000)
	var l net.PacketConn
	if err := p.Outside[0].Do(func() (err error) { l, err = net.ListenPacket("udp", remote.String()); return err }); err != nil {
		p.t.Fatal(err)
	}
	defer l.Close()
	go func() {
		buf := make([]byte, 16)
		for {
			n, from, err := l.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = l.WriteTo(buf[:n], from)
		}
	}()
	d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(source)}}
	for range n {
		var c net.Conn
		if err := p.Servers[0].Do(func() (err error) { c, err = d.Dial("udp", remote.String()); return err }); err != nil {
			p.t.Fatal(err)
		}
		p.t.Cleanup(func() { c.Close() })
		_, _ = c.Write([]byte("hello"))
		_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		_, _ = c.Read(make([]byte, 16)) // those beyond the limit get none
	}
}

var forwardAilments = map[string]ailment{
	"It is asked at another port": {make: func(p *patient) { p.use(troubleConfig) }},
	"The client is none of its sources": {make: func(p *patient) {
		p.use(troubleWith(`to: "192.168.3.2:3389"}`, `to: "192.168.3.2:3389", sources: [198.51.100.0/24]}`))
	}},
	"The server is not there": {make: func(p *patient) {
		p.use(troubleConfig)
		p.do("server", "ip link set eth0 arp off", "ip address flush dev eth0")
	}},
	"The server does not answer": {make: func(p *patient) {
		p.needs("nft")
		p.use(troubleConfig)
		p.listens("server", 3389)
		p.do("server", `nft 'table inet wall { chain in { type filter hook input priority 0; tcp dport 3389 drop; }; }'`)
	}},
	"The server answers by another gateway": {make: func(p *patient) {
		p.needs("tcpdump")
		p.use(troubleConfig)
		p.listens("server", 3389)
		p.do("server", "ip route replace default via 192.168.3.254")
	}},
	"The host's own firewall drops what is let in": {make: func(p *patient) {
		p.needs("nft")
		p.listens("server", 3389)
		p.use(troubleConfig)
		p.do("", `nft 'table inet filter { chain forward { type filter hook forward priority 0; policy drop; ct state established,related accept; iifname "eth3" accept; }; }'`)
		p.runs("outside", "bash -c 'while :; do timeout 1 bash -c \"</dev/tcp/203.0.113.1/3389\"; done'")
	}},
	"There are too many new connections": {make: func(p *patient) {
		p.use(troubleWith(`to: "192.168.3.2:3389"}`, `to: "192.168.3.2:3389", limit: {rate: 2}}`))
		p.listens("server", 3389)
	}},
	"It is asked from inside": {labs: []lab.Option{lab.Servers(2)}, make: func(p *patient) {
		p.use(troubleWith(troubleMasquerade, "    - {from: mgmt, to: external}\n"))
		p.listens("server", 3389)
	}},
}
