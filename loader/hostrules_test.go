package loader

import (
	"fmt"

	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
)

// hostExample is a gateway with a forward and a policy, on interfaces as in the lab.
func hostExample(forwards int) *resolved {
	prefix := netip.MustParsePrefix
	r := &resolved{
		zones: []Zone{{Name: "external", Role: RoleExternal}, {Name: "internal", Role: RoleInternal}, {Name: "mgmt", Role: RoleMgmt}},
		members: []*member{
			{name: "eth0", zone: "external", addrs: []netip.Prefix{prefix("203.0.113.1/24")}},
			{name: "eth3", zone: "internal", addrs: []netip.Prefix{prefix("192.168.3.1/24"), prefix("2001:db8:3::1/64")}},
			{name: "eth4", zone: "mgmt", addrs: []netip.Prefix{prefix("192.168.5.1/24"), prefix("fe80::1/64")}},
		},
		gateway: &resolvedGateway{
			roles: map[string]Role{"external": RoleExternal, "internal": RoleInternal, "mgmt": RoleMgmt},
			facts: gatewayFacts{Inside: map[string][]netip.Prefix{"internal": {prefix("192.168.3.0/24"), prefix("2001:db8:3::/64")}}},
			nat:   NAT{Masquerades: []Masquerade{{From: "internal", To: "external"}}, Exclude: []netip.Prefix{prefix("10.8.0.0/16")}},
			policies: []Policy{{
				Name: "updates", From: "mgmt", To: "external", Proto: "tcp", Ports: []PortRange{{80, 80}, {443, 443}}, Accept: true,
			}},
		},
	}
	for i := range uint16(forwards) {
		r.gateway.nat.Forwards = append(r.gateway.nat.Forwards, Forward{
			Name: fmt.Sprintf("f%d", i), In: "external", Proto: "tcp", Ports: PortRange{3389 + i, 3389 + i}, To: netip.MustParseAddr("192.168.3.3"), ToPort: 3389 + i,
		})
	}
	return r
}

// sentence is a finding in short.
func (h HostRule) sentence() string {
	may := ""
	if !h.Certain {
		may = "may: "
	}
	return may + h.Kind + " " + strings.Join(h.Concerns, ", ") + ": " + strings.Join(h.Commands, "; ")
}

// What iptables-save prints, and what becomes of it.
func TestHostRulesIptables(t *testing.T) {
	const filter = "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:extra - [0:0]\n%sCOMMIT\n"
	const nat = "*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:extra - [0:0]\n%sCOMMIT\n"
	const established = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
	out := "drops internal to external: iptables -I FORWARD -i eth3 -o eth0 -j ACCEPT"
	forward := "drops forward f0: iptables -I FORWARD -i eth0 -o eth3 -d 192.168.3.3 -p tcp --dport 3389 -j ACCEPT"
	updates := "drops policy updates: iptables -I FORWARD -i eth4 -o eth0 -p tcp --dport 80 -j ACCEPT; iptables -I FORWARD -i eth4 -o eth0 -p tcp --dport 443 -j ACCEPT"
	passes := func(what string) string { return established + what }
	most := "-A FORWARD -i eth3 -j ACCEPT\n-A FORWARD -i eth4 -p tcp -j ACCEPT\n"
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"nothing is dropped": {fmt.Sprintf(filter, passes("-A FORWARD -i eth+ -j ACCEPT\n")), nil},
		"a forward":          {fmt.Sprintf(filter, passes(most)), []string{forward}},
		"answers":            {fmt.Sprintf(filter, most+"-A FORWARD -i eth0 -m state --state NEW -j ACCEPT\n"), []string{"drops answers: iptables -I FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"}},
		"a policy":           {fmt.Sprintf(filter, passes("-A FORWARD ! -i eth4 -j ACCEPT\n")), []string{updates}},
		"to outside":         {fmt.Sprintf(filter, passes("-A FORWARD ! -s 192.168.3.0/24 -j ACCEPT\n")), []string{out}},
		"by dnat's state":    {fmt.Sprintf(filter, passes(most+"-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT\n-A FORWARD -m conntrack --ctstatus DNAT -j ACCEPT\n")), []string{forward}},
		"other ports":        {fmt.Sprintf(filter, passes(most+"-A FORWARD -p tcp -m multiport --dports 80,443,3000:3388 -j ACCEPT\n")), []string{forward}},
		"its port":           {fmt.Sprintf(filter, passes(most+"-A FORWARD -p tcp -m multiport --dports 80,443,3000:3389 -j ACCEPT\n")), nil},
		"some remotes":       {fmt.Sprintf(filter, passes(most+"-A FORWARD -s 198.51.100.0/24 -d 192.168.3.3/32 -j ACCEPT\n")), nil},
		"unknown":            {fmt.Sprintf(filter, passes(most+"-A FORWARD -m set --match-set friends src -j ACCEPT\n")), []string{"may: " + forward}},
		"unknown in part":    {fmt.Sprintf(filter, passes(most+"-A FORWARD -m set --match-set friends src -d 192.168.3.3/32 -j ACCEPT\n")), []string{"may: " + forward}},
		"return of some":     {fmt.Sprintf(filter, passes(most+"-A FORWARD -i eth0 -j extra\n-A FORWARD -i eth0 -j ACCEPT\n-A extra -s 198.51.100.0/24 -j RETURN\n-A extra -j DROP\n")), nil},
		"two masquerades": {fmt.Sprintf(nat, "-A POSTROUTING -o eth0 -j MASQUERADE\n-A POSTROUTING -s 192.168.0.0/16 -j SNAT --to-source 203.0.113.1\n"),
			[]string{"masquerades masquerade internal-external: iptables -t nat -D POSTROUTING -o eth0 -j MASQUERADE",
				"masquerades masquerade internal-external: iptables -t nat -D POSTROUTING -s 192.168.0.0/16 -j SNAT --to-source 203.0.113.1"}},
		"unknown drops":   {fmt.Sprintf(filter, passes(most+"-A FORWARD -m set --match-set enemies src -j DROP\n-A FORWARD -i eth0 -j ACCEPT\n")), nil},
		"a comment":       {fmt.Sprintf(filter, passes(most+"-A FORWARD -d 192.168.3.3/32 -m comment --comment \"a -j DROP \\\"b\\\" ! -i eth9\" -j ACCEPT\n")), nil},
		"jump and return": {fmt.Sprintf(filter, passes(most+"-A FORWARD -j extra\n-A FORWARD -i eth0 -j ACCEPT\n-A extra -p udp -j ACCEPT\n-A extra -i eth0 -j RETURN\n-A extra -j DROP\n")), nil},
		"goto":            {fmt.Sprintf(filter, passes(most+"-A FORWARD -i eth0 -g extra\n-A FORWARD -j ACCEPT\n-A extra -p udp -j ACCEPT\n")), []string{forward}},
		"a target that goes on": {fmt.Sprintf(filter, passes(most+"-A FORWARD -j LOG --log-prefix \"-j ACCEPT\"\n-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu\n")),
			[]string{forward}},
		"masquerade": {fmt.Sprintf(nat, "-A POSTROUTING -o eth0 -m comment --comment \"it\\'s mine\" -j MASQUERADE\n"),
			[]string{`masquerades masquerade internal-external: iptables -t nat -D POSTROUTING -o eth0 -m comment --comment 'it'\''s mine' -j MASQUERADE`}},
		"of some ports": {fmt.Sprintf(nat, "-A POSTROUTING -s 192.168.3.0/24 -p tcp -j SNAT --to-source 203.0.113.1:1024-65535\n"),
			[]string{"masquerades masquerade internal-external: iptables -t nat -D POSTROUTING -s 192.168.3.0/24 -p tcp -j SNAT --to-source 203.0.113.1:1024-65535"}},
		"masquerade of a mark": {fmt.Sprintf(nat, "-A POSTROUTING -j extra\n-A extra -m mark ! --mark 0x4000/0x4000 -j RETURN\n-A extra -j MASQUERADE\n"),
			[]string{"may: masquerades masquerade internal-external: iptables -t nat -D extra -j MASQUERADE"}},
		"masquerade of others": {fmt.Sprintf(nat, "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n-A POSTROUTING -o eth0 -d 10.8.1.0/24 -j MASQUERADE\n-A POSTROUTING -o eth4 -j MASQUERADE\n"+
			"-A POSTROUTING -o eth0 -m addrtype --src-type LOCAL -j MASQUERADE\n"),
			[]string{"masquerades_others masquerade internal-external: ", "masquerades_others masquerade internal-external: "}},
		"redirect": {fmt.Sprintf(nat, "-A PREROUTING -m addrtype --dst-type LOCAL -j extra\n-A extra -p tcp -m tcp --dport 3389 -j DNAT --to-destination 192.168.3.9\n-A PREROUTING -i eth4 -p tcp -j REDIRECT\n"),
			[]string{"redirects forward f0: iptables -t nat -D extra -p tcp -m tcp --dport 3389 -j DNAT --to-destination 192.168.3.9"}},
	} {
		var got []string
		for _, h := range hostExample(1).hold(&hostRuleset{tables: parseIptables(c.text, "iptables")}) {
			got = append(got, h.sentence())
		}
		if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(c.want))) {
			t.Errorf("%s:\n got %s\nwant %s", name, strings.Join(got, "\n     "), strings.Join(c.want, "\n     "))
		}
	}
}

// A rule is one of the family of its tool; ufw and Docker have chains of their own for it.
func TestHostRulesOwners(t *testing.T) {
	const text = "*filter\n:FORWARD DROP [0:0]\n:%s - [0:0]\n-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\n-A FORWARD -j %[1]s\nCOMMIT\n"
	for chain, want := range map[string][]string{
		"DOCKER-USER":      {"iptables -I DOCKER-USER -i eth3 -o eth0 -j ACCEPT", "iptables -I DOCKER-USER -i eth0 -o eth3 -d 192.168.3.3 -p tcp --dport 3389 -j ACCEPT"},
		"ufw-user-forward": {"ufw route allow in on eth3 out on eth0", "ufw route allow in on eth0 out on eth3 proto tcp to 192.168.3.3 port 3389"},
	} {
		found := hostExample(1).hold(&hostRuleset{tables: parseIptables(fmt.Sprintf(text, chain), "iptables")})
		if len(found) != 1 {
			t.Fatalf("%s: %+v", chain, found)
		}
		for _, c := range want {
			if !slices.Contains(found[0].Commands, c) {
				t.Errorf("%s: no %q in %q", chain, c, found[0].Commands)
			}
		}
	}
	found := hostExample(1).hold(&hostRuleset{tables: parseIptables(fmt.Sprintf(text, "x"), "ip6tables-legacy")})
	if len(found) != 1 || found[0].Commands[0] != "ip6tables-legacy -I FORWARD -i eth3 -o eth0 -j ACCEPT" {
		t.Errorf("of IPv6: %+v", found)
	}
}

// What is only in parts understood is never certain, and what is not JSON is an error.
func TestHostRulesNftUnknown(t *testing.T) {
	const chain = `{"nftables": [{"table": {"family": "inet", "name": "f"}},
		{"chain": {"family": "inet", "table": "f", "name": "c", "hook": "forward", "type": "filter", "prio": 0, "policy": "drop"}},
		{"chain": {"family": "inet", "table": "f", "name": "sub"}},
		{"rule": {"family": "inet", "table": "f", "chain": "sub", "handle": 8, "expr": [{"accept": null}]}},
		{"rule": {"family": "inet", "table": "f", "chain": "c", "handle": 9, "expr": [%s]}}]}`
	for expr, want := range map[string]string{
		`{"accept": null}`: "",
		`{"counter": {"packets": 1}}, {"jump": {"target": "sub"}}`:                                   "",
		`{"jump": {"target": "none"}}`:                                                               "drops",
		`{"limit": {"rate": 5}}, {"accept": null}`:                                                   "may",
		`{"of tomorrow": {}}, {"goto": {"target": "sub"}}`:                                           "may",
		`{"xt": {"type": "match", "name": "set"}}, {"accept": null}`:                                 "may",
		`{"xt": {"type": "match", "name": "comment"}}, {"accept": null}`:                             "",
		`{"xt": {"type": "target", "name": "ACCEPT"}}`:                                               "",
		`{"queue": {"num": 1}}`:                                                                      "", // its program judges
		`{"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": 5}}, {"accept": null}`:   "may",
		`{"match": {"op": "<", "left": {"meta": {"key": "iifname"}}, "right": 5}}, {"accept": null}`: "may",
		`{"match": {"op": "==", "left": {"concat": [{"meta": {"key": "iifname"}}]}, "right": {"set": [{"concat": ["eth0"]}]}}}, {"accept": null}`:      "may",
		`{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "@gone"}}, {"accept": null}`:                                            "drops",
		`{"match": {"op": "!=", "left": {"ct": {"key": "state"}}, "right": "invalid"}}, {"accept": null}`:                                              "",
		`{"match": {"op": "in", "left": {"ct": {"key": "status"}}, "right": "dnat"}}, {"accept": null}`:                                                "drops",
		`{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": {"set": [{"elem": {"val": "eth*", "timeout": 5}}]}}}, {"accept": null}`: "",
		`{"vmap": {"key": {"meta": {"key": "nfproto"}}, "data": {"set": [["ipv4", {"accept": null}], ["ipv6", {"jump": {"target": "sub"}}]]}}}`:        "",
	} {
		tables, err := parseNft([]byte(fmt.Sprintf(chain, expr)), nil)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, h := range hostExample(1).hold(&hostRuleset{tables: tables}) {
			switch {
			case h.Kind != HostDrops:
				t.Errorf("%s: %+v", expr, h)
			case !h.Certain:
				got += "may"
			default:
				got += "drops"
			}
		}
		if got != want {
			t.Errorf("%s: %q, want %q", expr, got, want)
		}
		if asleep, err := parseNft([]byte(fmt.Sprintf(chain, expr)), []string{"inet f"}); err != nil || len(asleep) > 0 {
			t.Errorf("a table that sleeps: %v, %v", asleep, err)
		}
	}
	if _, err := parseNft([]byte(`{"nftables": [`), nil); err == nil {
		t.Error("half of it is read")
	}
}

// Where there is no tool for rules that there are, that is said; and nothing where
// there are none.
func TestHostRulesUnseen(t *testing.T) {
	ns := openTestNetns(t, newTestNetns(t))
	find := findTool
	t.Cleanup(func() { findTool = find })
	findTool = func(string) string { return "" }
	unseen := func() (list []string) {
		t.Helper()
		if err := ns.do(func() error { list = readHostRules().unseen; return nil }); err != nil {
			t.Fatal(err)
		}
		return list
	}
	if got := unseen(); len(got) > 0 {
		t.Errorf("in a namespace without rules: %q", got)
	}
	conn, err := nftables.New(nftables.WithNetNSFd(ns.fd))
	if err != nil {
		t.Fatal(err)
	}
	conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "wall"})
	conn.AddTable(&nftables.Table{Family: nftables.TableFamilyARP, Name: "arp"})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := unseen(); len(got) != 1 || !strings.Contains(got[0], "(table inet wall)") || !strings.Contains(got[0], "install nftables") {
		t.Errorf("rules without nft: %q", got)
	}
	broken := filepath.Join(t.TempDir(), "nft")
	if err := os.WriteFile(broken, []byte("#!/bin/sh\necho 'Error: JSON support not compiled-in' >&2; exit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	findTool = func(name string) string {
		if name == "nft" {
			return broken
		}
		return ""
	}
	if got := unseen(); len(got) != 1 || !strings.Contains(got[0], "JSON support not compiled-in") {
		t.Errorf("an nft without JSON: %q", got)
	}
}

// 10,000 forwards are held against rules; commands of all, warnings in short.
func TestHostRulesMany(t *testing.T) {
	const text = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -i eth3 -j ACCEPT\n-A FORWARD -i eth4 -j ACCEPT\nCOMMIT\n"
	found := hostExample(10_000).hold(&hostRuleset{tables: parseIptables(text, "iptables")})
	if len(found) != 1 || len(found[0].Concerns) != 10_000 || len(found[0].Commands) != 10_000 {
		t.Fatalf("%d findings", len(found))
	}
	lines := hostWarnings(found)
	if len(lines) != 1 || strings.Count(lines[0], "\n") != mostCommands+1 || !strings.Contains(lines[0], "f4 and 9995 more") || !strings.Contains(lines[0], "(and 9988 more") {
		t.Errorf("%s", strings.Join(lines, "\n"))
	}
	// Rules that cannot be followed for all of them.
	var long strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&long, "-A FORWARD -s 10.%d.%d.0/24 -j DROP\n", i/256, i%256)
	}
	found = hostExample(10_000).hold(&hostRuleset{tables: parseIptables(strings.Replace(text, "-A FORWARD", long.String()+"-A FORWARD", 1), "iptables")})
	if !slices.ContainsFunc(found, func(h HostRule) bool { return h.Kind == HostUnseen }) {
		t.Errorf("%d findings, none that says that it is not all", len(found))
	}
}

// Spans and networks are the same where they can be.
func TestHostSpan(t *testing.T) {
	for _, text := range []string{"0.0.0.0/0", "10.0.0.0/8", "192.168.3.128/25", "192.168.3.3/32", "::/0", "2001:db8::/33", "2001:db8::1/128"} {
		p := netip.MustParsePrefix(text)
		s := spanOf(p)
		if !p.Contains(s.last) || s.last.Next().IsValid() && p.Contains(s.last.Next()) {
			t.Errorf("%s ends with %s", p, s.last)
		}
		if got, is := s.prefix(); !is || got != p {
			t.Errorf("%s is %s again", p, got)
		}
	}
	if p, is := (hostSpan{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")}).prefix(); is {
		t.Errorf("10.0.0.1-10.0.0.2 is %s", p)
	}
}
