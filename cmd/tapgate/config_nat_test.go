package main

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"tapgate/loader"
)

const natConfig = `zones:
  external: {interfaces: [eth0]}
  internal: {interfaces: [eth3], prefixes: [10.3.0.0/16, "2001:db8:30::/48"]}
  mgmt: {interfaces: [eth4]}
nat:
  masquerade:
    - {from: internal, to: external}
    - name: pool
      from: mgmt
      to: external
      sources: [192.168.5.0/25]
      addresses: [203.0.113.10, 203.0.113.16/30, "2001:db8:113::/120"]
      ports: ["1024-32767", 61000-65535]
      filtering: endpoint-independent
      ipv6: true
  exclude: [10.0.0.0/8, "fd00::/8"]
  max_flows: 262144
  max_flows_per_host: 26214
  preallocate: true
  clamp_mss: true
  sysctls: keep
  timeouts: {tcp_opening: 4m, tcp_established: 7440s, tcp_closing: 240s, udp: 300s, udp_unanswered: 2m, icmp: 60s, other: 10m0.5s}
  forwards:
    - {name: rdp, in: external, proto: tcp, port: 3389, to: "192.168.3.3:3389"}
    - {name: web6, in: external, address: "2001:db8:113::1", proto: tcp, port: 8080, to: "[2001:db8:3::2]:80"}
    - name: range
      in: external
      address: 203.0.113.10
      proto: udp
      port: "7000-7009"
      to: 192.168.3.3:9000-9009
      sources: [198.51.100.0/24, 192.0.2.7]
      limit: {rate: 100, per_remote: 5}
policies:
  - {from: mgmt, to: external, proto: tcp, ports: [80, "8000-8010"], action: accept}
  - {name: quiet, from: internal, to: external, proto: 47, source: 192.168.3.7, destinations: [192.0.2.0/24, "::/0"], action: drop, log: true}
`

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func ports(first, last uint16) loader.PortRange { return loader.PortRange{First: first, Last: last} }

func natExample() (loader.NAT, []loader.Policy) {
	return loader.NAT{
			Masquerades: []loader.Masquerade{
				{From: "internal", To: "external"},
				{
					Name: "pool", From: "mgmt", To: "external", Sources: []netip.Prefix{prefix("192.168.5.0/25")},
					Addresses: []netip.Prefix{prefix("203.0.113.10/32"), prefix("203.0.113.16/30"), prefix("2001:db8:113::/120")},
					Ports:     []loader.PortRange{ports(1024, 32767), ports(61000, 65535)}, EndpointIndependent: true, IPv6: true,
				},
			},
			Exclude:  []netip.Prefix{prefix("10.0.0.0/8"), prefix("fd00::/8")},
			MaxFlows: 262144, MaxFlowsPerHost: 26214, Preallocate: true, ClampMSS: true, KeepSysctls: true,
			Timeouts: loader.Timeouts{
				TCPOpening: 4 * time.Minute, TCPEstablished: 7440 * time.Second, TCPClosing: 4 * time.Minute,
				UDP: 5 * time.Minute, UDPUnanswered: 2 * time.Minute, ICMP: time.Minute, Other: 10*time.Minute + time.Second/2,
			},
			Forwards: []loader.Forward{
				{Name: "rdp", In: "external", Proto: "tcp", Ports: ports(3389, 3389), To: netip.MustParseAddr("192.168.3.3"), ToPort: 3389},
				{
					Name: "web6", In: "external", Address: netip.MustParseAddr("2001:db8:113::1"), Proto: "tcp", Ports: ports(8080, 8080),
					To: netip.MustParseAddr("2001:db8:3::2"), ToPort: 80,
				},
				{
					Name: "range", In: "external", Address: netip.MustParseAddr("203.0.113.10"), Proto: "udp", Ports: ports(7000, 7009),
					To: netip.MustParseAddr("192.168.3.3"), ToPort: 9000,
					Sources: []netip.Prefix{prefix("198.51.100.0/24"), prefix("192.0.2.7/32")}, Rate: 100, RateHost: 5,
				},
			},
		}, []loader.Policy{
			{From: "mgmt", To: "external", Proto: "tcp", Ports: []loader.PortRange{ports(80, 80), ports(8000, 8010)}, Accept: true},
			{
				Name: "quiet", From: "internal", To: "external", Proto: "47", Sources: []netip.Prefix{prefix("192.168.3.7/32")},
				Destinations: []netip.Prefix{prefix("192.0.2.0/24"), prefix("::/0")}, Log: true,
			},
		}
}

func TestParseNAT(t *testing.T) {
	nat, policies := natExample()
	d := mustParse(t, natConfig)
	if d.NAT == nil || !reflect.DeepEqual(*d.NAT, nat) {
		t.Errorf("nat\n got %+v\nwant %+v", d.NAT, nat)
	}
	if !reflect.DeepEqual(d.Policies, policies) {
		t.Errorf("policies\n got %+v\nwant %+v", d.Policies, policies)
	}
	if want := []netip.Prefix{prefix("10.3.0.0/16"), prefix("2001:db8:30::/48")}; !reflect.DeepEqual(d.Zones[1].Prefixes, want) {
		t.Errorf("prefixes %v, want %v", d.Zones[1].Prefixes, want)
	}
	for path, want := range map[string]string{
		"nat":                             "f:5:1",
		"nat.masquerade[0].from":          "f:7:14",
		"nat.masquerade[1].addresses[1]":  "f:12:33",
		"nat.forwards[0].to":              "f:24:61",
		"nat.forwards[2].port":            "f:30:13",
		"nat.forwards[2].limit.rate":      "f:33:21",
		"policies[0].ports[1]":            "f:35:56",
		"policies[1].source":              "f:36:68",
		"policies[1].sources[0]":          "f:36:5", // not there under this name: its policy
		"zones.internal.prefixes[1]":      "f:3:58",
		"nat.timeouts.udp":                "f:22:79",
		"nat.max_flows":                   "f:17:14",
		"nat.forwards[2].sources[1]":      "f:32:34",
		"nat.masquerade[1].filtering.foo": "f:14:18",
	} {
		if got := d.place(path); got != want {
			t.Errorf("place of %q: %s, want %s", path, got, want)
		}
	}
}

// Without nat: nothing is translated; an empty one makes a gateway all the same.
func TestParseNATOrNot(t *testing.T) {
	if d := mustParse(t, "zones: {}\n"); d.NAT != nil {
		t.Errorf("nat of nothing: %+v", d.NAT)
	}
	for _, text := range []string{"nat:\n", "nat: {}\n", "nat: {masquerade: [], forwards: , sysctls: set}\n"} {
		d := mustParse(t, text)
		if d.NAT == nil || !reflect.DeepEqual(*d.NAT, loader.NAT{}) {
			t.Errorf("%s: %+v", text, d.NAT)
		}
		if got := formatConfig(d.Config); got != "nat: {}\n" {
			t.Errorf("%s is written as %s", text, got)
		}
	}
}

// The default is written as nothing.
func TestForwarding(t *testing.T) {
	for text, want := range map[string]string{"": "", "forwarding: fast\n": "", "forwarding: kernel\n": loader.ForwardingKernel} {
		d := mustParse(t, "nat: {}\n"+text)
		if d.Forwarding != want {
			t.Errorf("%q is read as %q", text, d.Forwarding)
		}
		if got := formatConfig(d.Config); want == "" && got != "nat: {}\n" || want != "" && got != "nat: {}\n"+text {
			t.Errorf("%q is written as %q", text, got)
		}
	}
	if got := formatConfig(loader.Config{Forwarding: loader.ForwardingFast}); got != "" {
		t.Errorf("the default is written: %q", got)
	}
}

func TestFormatNAT(t *testing.T) {
	first := mustParse(t, natConfig)
	text := formatConfig(first.Config)
	golden(t, "config-nat.yaml", text)
	second := mustParse(t, text)
	first.Source, second.Source = "", ""
	if !reflect.DeepEqual(first.Config, second.Config) {
		t.Errorf("another configuration after writing and reading:\n got %+v\nwant %+v\n%s", second.Config, first.Config, text)
	}
}

// What is wrong with a gateway's configuration, as users are told.
func TestNATErrors(t *testing.T) {
	forward := func(rest string) string {
		return "nat:\n  forwards:\n    - {name: rdp, in: external, proto: tcp, port: 3389, to: 192.168.3.3:3389" + rest + "}\n"
	}
	with := func(key, value string) string {
		keys := []string{"name: rdp", "in: external", "proto: tcp", "port: 3389", "to: 192.168.3.3:3389"}
		for i, k := range keys {
			if strings.HasPrefix(k, key+":") {
				keys[i] = key + ": " + value
			}
		}
		return "nat:\n  forwards:\n    - {" + strings.Join(keys, ", ") + "}\n"
	}
	masquerade := func(rest string) string { return "nat: {masquerade: [{from: a, to: b" + rest + "}]}\n" }
	policy := func(rest string) string { return "policies:\n  - {from: a, to: b, action: drop" + rest + "}\n" }
	var b strings.Builder
	for _, text := range []string{
		"nats: {}\n",
		"nat: [a]\n",
		"nat:\n  forward: []\n  mascarade: []\n  frobnicate: 1\n",
		"nat:\n  masquerade: internal\n",
		"nat:\n  masquerade:\n    - internal\n    - {}\n    - {form: internal, to: external}\n",
		masquerade(", addresses: [203.0.113.300]"),
		masquerade(", addresses: []"),
		masquerade(", addresses: [203.0.113.9/24, '::ffff:10.0.0.0/90', fe80::1%eth0]"),
		masquerade(", sources: "),
		masquerade(", sources: [{}, 10.0.0.0/33, no, 10.0.0.0/-1]"),
		masquerade(", ports: 0"),
		masquerade(", ports: [1-2, 3-4, 5-6]"),
		masquerade(", ports: [65536, 010, 1-, -1, 9-8, 0x50, +5, 8 - 9]"),
		masquerade(", filtering: endpoint-independant"),
		masquerade(", filtering: [open]"),
		masquerade(", ipv6: yes"),
		masquerade(", ipv6: 1"),
		masquerade(", ipv6: "),
		masquerade(", name: ''"),
		"nat:\n  exclude: 10.0.0.1/8\n",
		"nat:\n  max_flows: 0\n  max_flows_per_host: -1\n",
		"nat:\n  max_flows: many\n  max_flows_per_host: 4294967296\n",
		"nat:\n  max_flows: 1.5\n  clamp_mss: maybe\n",
		"nat:\n  sysctls: leave\n",
		"forwarding: kernal\n",
		"forwarding: no\n",
		"forwarding: [fast]\n",
		"forwarding:\n",
		"nat:\n  timeouts: 5s\n",
		"nat:\n  timeouts: {udp: 300, icmp: soon, tcp_establised: 2h, other: 0s, tcp_closing: -1s, tcp_opening: }\n",
		"nat:\n  forwards:\n    - {name: rdp}\n",
		with("name", ""),
		with("proto", "tpc"),
		with("proto", "icmp"),
		with("port", "rdp"),
		with("port", "[3389]"),
		with("port", "3389-3390"),
		with("to", "192.168.3.3"),
		with("to", "192.168.3.3:"),
		with("to", "192.168.3.3:3389-3399"),
		with("to", "server:3389"),
		with("to", "'2001:db8::1:80'"),
		with("to", "'[192.168.3.3]:80'"),
		with("to", "'[2001:db8::1:80'"),
		with("to", "192.168.3.3:0"),
		forward(", address: eth0"),
		forward(", limit: 5"),
		forward(", limit: {rate: 0, per_host: 7}"),
		forward(", source: 10.0.0.0/8"),
		"policies: {from: a}\n",
		"policies:\n  - {}\n",
		"policies:\n  - {from: a, to: b}\n",
		"policies:\n  - {from: a, to: b, action: deny}\n",
		policy(", proto: tpc"),
		policy(", proto: 256"),
		policy(", proto: 6.5"),
		policy(", ports: []"),
		policy(", port: 80"),
		policy(", sources: [], destination: 192.0.2.1/24"),
		policy(", log: on"),
		policy(", zone: a"),
		"zones:\n  internal: {interfaces: [eth3], prefix: [10.0.0.0/8]}\n",
		"zones:\n  internal: {interfaces: [eth3], prefixes: [10.0.0.0/4]}\n",
	} {
		_, err := parseConfig("f", []byte(text))
		if err == nil {
			t.Errorf("no error:\n%s", text)
			continue
		}
		if code := exitCode(err); code != exitUsage {
			t.Errorf("exit code %d:\n%s", code, text)
		}
		fmt.Fprintf(&b, "%s%s\n\n", text, indent(strings.Join(errorLines(err), "\n")))
	}
	golden(t, "config-nat-errors.txt", b.String())
}
