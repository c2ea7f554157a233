package main

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"tapgate/loader"
)

func exampleFlows() []loader.Flow {
	return []loader.Flow{
		{
			Proto: "udp", Inside: "192.168.3.2:51234", Outside: "203.0.113.1:61022", Remote: "198.51.100.53:53", State: "unanswered",
			ExpiresIn: 119.4, Age: 0.6, Packets: 1, Bytes: 74, Copied: 1, Origin: "masquerade", Rule: "internal-external",
		},
		{
			Proto: "tcp", Inside: "192.168.3.3:3389", Outside: "203.0.113.1:3389", Remote: "203.0.113.8:40222", State: "established",
			ExpiresIn: 7439.9, Age: 86400, Packets: 1234567, Bytes: 987654321, Copied: 1234567, Origin: "forward", Rule: "rdp",
			Fast: true, FromOutside: true,
		},
		{
			Proto: "icmpv6", Inside: "[2001:db8:3::2]:77", Outside: "[2001:db8:3::2]:77", Remote: "2001:db8:113::8", State: "answered",
			ExpiresIn: 60, Age: 7, Packets: 4, Bytes: 472, Origin: "allowed",
		},
		{
			Proto: "tcp", Inside: "[2001:db8:3:ffff:ffff:ff:f:2]:51234", Outside: "[2001:db8:113:ffff:ffff:ff:f:1]:61022",
			Remote: "[2001:db8:ffff:ffff:ffff:ff:f:8]:443", State: "established", ExpiresIn: 7440, Age: 3599, Packets: 9, Bytes: 5000,
			Origin: "masquerade", Rule: "pool",
		},
		{Proto: "gre", Inside: "192.168.3.2", Outside: "203.0.113.1", Remote: "198.51.100.1", State: "unanswered", ExpiresIn: 600, Packets: 2, Bytes: 200, Origin: "masquerade"},
	}
}

func TestFlows(t *testing.T) {
	f := &fake{flows: exampleFlows(), source: gatewayConfig}
	got := call(f, "", "flows", "--addr", "192.168.3.0/24", "--port", "443", "--proto", "tcp", "--zone", "internal")
	if got.code != 0 || got.stderr != "" || f.opened != loader.ReadOnly || f.closed != 1 {
		t.Errorf("%+v", got)
	}
	want := loader.FlowFilter{Addr: prefix("192.168.3.0/24"), Port: 443, Proto: "tcp", Zone: "internal"}
	if !reflect.DeepEqual(f.filters, []loader.FlowFilter{want}) {
		t.Errorf("asked for %+v, want %+v", f.filters, want)
	}

	// The first N are those with most bytes, and the rest is counted.
	got = call(&fake{flows: exampleFlows()}, "", "flows", "--limit", "2")
	if n := strings.Count(got.stdout, " > ") + strings.Count(got.stdout, " < "); n != 2 || !strings.Contains(got.stdout, "203.0.113.8:40222") ||
		!strings.Contains(got.stdout, "  as [2001:db8:113:") || got.stderr != "tapgate: 3 more\n" {
		t.Errorf("%+v", got)
	}
	got = call(&fake{flows: exampleFlows()}, "", "flows", "--json", "--limit", "1")
	var flows []loader.Flow
	if err := json.Unmarshal([]byte(got.stdout), &flows); err != nil || len(flows) != 1 || flows[0] != exampleFlows()[1] || got.stderr != "" {
		t.Errorf("%v: %+v", err, got)
	}
	if got := call(&fake{}, "", "flows", "--json"); got != (outcome{stdout: "[]\n"}) {
		t.Errorf("no flows in JSON: %+v", got)
	}
	if got := call(&fake{}, "", "flows"); got != (outcome{stderr: "tapgate: no flows\n"}) {
		t.Errorf("no flows: %+v", got)
	}
}

func TestFlowsFlush(t *testing.T) {
	for _, c := range []struct {
		args   string
		filter loader.FlowFilter
	}{
		{"--all", loader.FlowFilter{}},
		{"--addr 203.0.113.8", loader.FlowFilter{Addr: prefix("203.0.113.8/32")}},
		{"--addr 2001:db8::/32 --proto 47", loader.FlowFilter{Addr: prefix("2001:db8::/32"), Proto: "47"}},
		{"--port 80 --zone mgmt", loader.FlowFilter{Port: 80, Zone: "mgmt"}},
	} {
		f := &fake{flows: exampleFlows(), source: gatewayConfig}
		got := call(f, "", append([]string{"flows", "flush"}, strings.Fields(c.args)...)...)
		if got != (outcome{stdout: "5 flows flushed\n"}) || f.opened != loader.ReadWrite || f.closed != 1 {
			t.Errorf("%s: %+v", c.args, got)
		}
		if !reflect.DeepEqual(f.filters, []loader.FlowFilter{c.filter}) {
			t.Errorf("%s: asked for %+v, want %+v", c.args, f.filters, c.filter)
		}
	}
	if got := call(&fake{}, "", "flows", "flush", "--all"); got != (outcome{stderr: "tapgate: already so: no such flows\n"}) {
		t.Errorf("nothing to flush: %+v", got)
	}
}
