package e2e

import (
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"tapgate/test/kernels"
	"tapgate/test/lab"
)

// What is wrong between the gateway and the sensor.
var tapAilments = map[string]ailment{
	"The sensor does not answer": {labs: []lab.Option{lab.SilentSensor()}, make: func(p *patient) {
		p.use(troubleConfig)
		p.pings()
	}},
	"The dmz interface is down": {make: func(p *patient) {
		p.use(troubleConfig)
		p.do("", "ip link set eth2 down")
	}},
	"The cable to the sensor has no carrier": {make: func(p *patient) {
		p.use(troubleConfig)
		p.do("sensor", "ip link set eth0 down")
	}},
	"No mirror taps the zone": {make: func(p *patient) {
		p.use(strings.Replace(troubleConfig, "zones: [internal]", "zones: [mgmt]", 1))
	}},
	"The programs were taken off an interface": {make: func(p *patient) {
		p.needs("bpftool")
		p.use(troubleConfig)
		p.stripped("eth3")
	}},
	"The packets do not come by the gateway": {labs: []lab.Option{lab.Servers(2)}, make: func(p *patient) {
		p.needs("tcpdump")
		p.use(troubleConfig)
		p.runs("server", "ping -q -i 0.1 192.168.3.3")
	}},
	"The answers take another way": {make: func(p *patient) {
		// The server's packets leave as they are, and the answers go to a router that is not there.
		p.use(strings.Replace(troubleConfig, "    - {from: internal, to: external}", "    - {from: mgmt, to: external}", 1))
		p.do("outside", "ip route add 192.168.3.0/24 via 203.0.113.99")
		p.pings()
	}},
	"The gateway drops the other direction": {make: func(p *patient) {
		p.use(troubleConfig)
		p.runs("server", "ping -q -i 0.1 192.168.5.2")
	}},
	"A program of somebody else comes first": {make: func(p *patient) {
		p.use(troubleConfig)
		p.inFront("eth3")
	}},
	"The dmz interface computes checksums again": {make: func(p *patient) {
		p.needs("ethtool")
		p.use(troubleConfig)
		p.do("", "ethtool -K eth2 tx on")
	}},
	"The sensor's own interface joins frames": {make: func(p *patient) {
		p.needs("ethtool", "tcpdump")
		p.use(troubleConfig)
		p.do("sensor", "ethtool -K eth0 gro on")
		p.streams()
	}},
	"Packets are larger than the dmz interface takes": {make: func(p *patient) {
		p.use(troubleConfig)
		p.do("", "ip link set eth2 mtu 1400")
		p.runs("server", "ping -q -i 0.1 -s 1472 203.0.113.8")
	}},
	"The link to the sensor is too slow": {make: func(p *patient) {
		p.use(troubleConfig)
		p.do("", "tc qdisc add dev eth2 root tbf rate 1mbit burst 2kb limit 4kb")
		p.streams()
	}},
	"Two mirrors have the same target": {make: func(p *patient) {
		p.use(troubleConfig)
		p.do("", "tapgate mirror add rec --zone internal --via 192.168.4.2")
	}},
	"A mirror taps both sides of the translation": {make: func(p *patient) {
		p.use(strings.Replace(troubleConfig, "zones: [internal]", "zones: [internal, external]", 1))
	}},
	"The sensor was replaced": {make: func(p *patient) {
		p.use(troubleConfig)
		p.pings()
		p.resolved()
		p.do("sensor", "ip link set eth0 address 02:00:00:00:00:99")
	}},
	"The target names a MAC address": {make: func(p *patient) {
		p.use(strings.Replace(troubleConfig, "{via: 192.168.4.2}", `{l2: eth2, mac: "02:00:00:00:00:77"}`, 1))
		p.needs("tcpdump")
		p.pings()
	}},
	"An interface was renamed": {make: func(p *patient) {
		p.use(troubleConfig)
		p.do("", "ip link set eth3 down", "ip link set eth3 name lan0", "ip link set lan0 up")
	}},
	"It asks by the dmz interface": {make: func(p *patient) { p.use(troubleConfig) }},
	"An interface was made anew": {make: func(p *patient) {
		p.use(troubleConfig)
		p.do("", "ip link del eth3", "ip link add eth3 type veth peer name eth3p", "ip link set eth3 up", "ip link set eth3p up", "ip address add 192.168.3.1/24 dev eth3")
	}},
}

// streams has the server send to the outside as fast as TCP lets it.
func (p *patient) streams() {
	p.t.Helper()
	p.needs("iperf3")
	p.runs("outside", "iperf3 -s")
	p.runs("server", "bash -c 'while :; do iperf3 -c 203.0.113.8 -t 60 >/dev/null 2>&1; sleep 0.2; done'")
}

// stripped takes the program for what comes in off an interface, as a stranger would.
func (p *patient) stripped(ifname string) {
	p.t.Helper()
	tcx, err := kernels.Has("tcx")
	if err != nil {
		p.t.Fatal(err)
	}
	if !tcx {
		p.do("", "tc filter del dev "+ifname+" ingress")
		return
	}
	p.do("", fmt.Sprintf("bpftool link detach pinned %s/links/%d/tapgate_tap_in", p.stateDir(), p.Gateway.Interface(ifname).Index))
}

// inFront puts a program of somebody else before ours.
func (p *patient) inFront(ifname string) {
	p.t.Helper()
	tcx, err := kernels.Has("tcx")
	if err != nil {
		p.t.Fatal(err)
	}
	if !tcx {
		p.do("", "tc filter add dev "+ifname+" ingress prio 1 matchall action ok")
		return
	}
	s := newStranger(p.t, ifname)
	err = p.Gateway.Do(func() (err error) {
		s.link, err = link.AttachTCX(link.TCXOptions{
			Interface: p.Gateway.Interface(ifname).Index, Program: s.prog, Attach: ebpf.AttachTCXIngress, Anchor: link.Head(),
		})
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { s.link.Close() })
}
