package loader

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// owner is the program that made a table, as far as its chains tell, or else the
// command that changes it.
func (t *hostTable) owner() string {
	if t.firewalld() {
		return "firewalld"
	}
	for _, c := range t.order {
		switch {
		case c.name == "DOCKER" || c.name == "DOCKER-USER":
			return "Docker"
		case strings.HasPrefix(c.name, "ufw-") || strings.HasPrefix(c.name, "ufw6-"):
			return "ufw"
		}
	}
	return t.tool
}

// firewalld has a table of nft's, or chains in those of iptables.
func (t *hostTable) firewalld() bool {
	if t.tool == "nft" {
		return t.name == "firewalld"
	}
	return t.chains["FORWARD_ZONES"] != nil || t.chains["POSTROUTING_ZONES"] != nil
}

// removal are the commands that take a rule away, for good where that can be said.
func (f *hostFinder) removal(r *hostRule) []string {
	t := r.chain.table
	if t.firewalld() {
		if commands := f.firewalldRemoval(r); commands != nil {
			return commands
		}
	}
	if t.tool != "nft" {
		table := ""
		if t.name != "filter" {
			table = " -t " + t.name
		}
		return []string{t.tool + table + " -D " + r.quoted}
	}
	return []string{fmt.Sprintf("nft delete rule %s %s %s handle %d", t.family, t.name, r.chain.name, r.handle)}
}

// firewalldChain is the chain of a zone or a policy that its own rules stand in.
var firewalldChain = regexp.MustCompile(`^(?:nat_)?(POST|PRE)_(policy_)?(.+)_allow$`)

// firewalldForward is a rule that a forward of ports makes.
var firewalldForward = regexp.MustCompile(`(tcp|udp)(?: .*)? ?dports? (\d+(?:[-:]\d+)?) .*(?:dnat (?:ip6? )?to|--to-destination) (\[[0-9a-f:]+\]|[0-9.]+)(?::(\d+(?:-\d+)?))?`)

// firewalldRemoval: rules that firewalld made come again unless it is told.
func (f *hostFinder) firewalldRemoval(r *hostRule) []string {
	parts := firewalldChain.FindStringSubmatch(r.chain.name)
	if parts == nil {
		return nil
	}
	whose := "--zone=" + parts[3]
	if parts[2] != "" || r.chain.table.tool != "nft" && !r.chain.table.zoned(parts[3]) {
		whose = "--policy=" + parts[3]
	}
	what := ""
	switch {
	case parts[1] == "POST":
		what = "--remove-masquerade"
		if rich, is := richMasquerade(r); is {
			what = "--remove-rich-rule='" + rich + "'"
		}
	default:
		fw := firewalldForward.FindStringSubmatch(f.textOf(r))
		if fw == nil {
			return nil
		}
		what = fmt.Sprintf("--remove-forward-port=port=%s:proto=%s:toport=%s:toaddr=%s", strings.Replace(fw[2], ":", "-", 1), fw[1], fw[4], strings.Trim(fw[3], "[]"))
	}
	return []string{"firewall-cmd --permanent " + whose + " " + what, "firewall-cmd --reload"}
}

// zoned says whether the name is a zone's, not a policy's, where chains do not tell.
func (t *hostTable) zoned(name string) bool {
	for _, c := range t.order {
		if strings.HasSuffix(c.name, "_ZONES") && slices.ContainsFunc(c.rules, func(r *hostRule) bool { return strings.HasSuffix(r.target, "_"+name) }) {
			return true
		}
	}
	return false
}

// richMasquerade is the rich rule that a masquerade came from: it asks for a source.
func richMasquerade(r *hostRule) (rule string, is bool) {
	family, source := "", ""
	for _, c := range r.conds {
		if c.field != fieldSrc || len(c.spans) != 1 {
			continue
		}
		p, plain := c.spans[0].prefix()
		if !plain {
			continue
		}
		family, source = "ipv4", "address"
		if p.Addr().Is6() {
			family = "ipv6"
		}
		if c.not {
			source = "NOT address"
		}
		source += fmt.Sprintf(`="%s"`, p)
	}
	return fmt.Sprintf(`rule family="%s" source %s masquerade`, family, source), source != ""
}

// prefix is the span as a network, if it is one.
func (s hostSpan) prefix() (netip.Prefix, bool) {
	for bits := 0; bits <= s.first.BitLen(); bits++ {
		if p := netip.PrefixFrom(s.first, bits); p.Masked() == p && spanOf(p) == s {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// permission are the commands that let pass what a chain drops.
func (f *hostFinder) permission(d *hostDropped) []string {
	t := d.by.table
	switch t.owner() {
	case "firewalld":
		return f.firewalldPermission(d)
	case "ufw":
		return eachQuestion(d, ufwPermission)
	}
	if t.tool == "nft" {
		return eachQuestion(d, func(q *hostQuestion) string {
			return strings.Join([]string{"nft insert rule", t.family, t.name, d.by.name, q.nft(), "accept"}, " ")
		})
	}
	chain := d.by.name
	if chain == "FORWARD" && t.chains["DOCKER-USER"] != nil {
		chain = "DOCKER-USER" // which Docker leaves alone and asks first
	}
	if t.name != "filter" {
		chain += " -t " + t.name
	}
	return eachQuestion(d, func(q *hostQuestion) string {
		return strings.Join([]string{t.tool, "-I", chain, q.iptables(), "-j ACCEPT"}, " ")
	})
}

// eachQuestion makes a command of each, and none twice.
func eachQuestion(d *hostDropped, command func(*hostQuestion) string) (list []string) {
	seen := map[string]bool{"": true}
	for i := range d.asked {
		if c := command(&d.asked[i].hostQuestion); !seen[c] {
			list = append(list, c)
			seen[c] = true
		}
	}
	return list
}

// single is the only address or network of a list, "" for several or any.
func single(list []hostSpan) string {
	if len(list) != 1 {
		return ""
	}
	p, is := list[0].prefix()
	switch {
	case !is:
		return ""
	case p.IsSingleIP():
		return p.Addr().String()
	}
	return p.String()
}

// ports are the ports asked for, "" for all.
func (q *hostQuestion) ports(between string) string {
	p := q.packet.dports
	switch {
	case p.Last == 0:
		return ""
	case p.First == p.Last:
		return strconv.Itoa(int(p.First))
	}
	return fmt.Sprintf("%d%s%d", p.First, between, p.Last)
}

func (q *hostQuestion) iptables() string {
	p := &q.packet
	if p.state == "established" {
		return "-m conntrack --ctstate RELATED,ESTABLISHED"
	}
	words := []string{"-i " + p.in}
	if p.out != "" {
		words = append(words, "-o "+p.out)
	}
	if q.narrow {
		if to := single(p.dst); to != "" {
			words = append(words, "-d "+to)
		}
		words = append(words, "-p "+p.proto)
		if ports := q.ports(":"); ports != "" {
			words = append(words, "--dport "+ports)
		}
	}
	return strings.Join(words, " ")
}

func (q *hostQuestion) nft() string {
	p := &q.packet
	if p.state == "established" {
		return "ct state established,related"
	}
	words := []string{"iifname " + p.in}
	if p.out != "" {
		words = append(words, "oifname "+p.out)
	}
	if q.narrow {
		if to := single(p.dst); to != "" {
			words = append(words, map[bool]string{false: "ip", true: "ip6"}[p.v6]+" daddr "+to)
		}
		if ports := q.ports("-"); ports != "" {
			words = append(words, p.proto+" dport "+ports)
		} else {
			words = append(words, "meta l4proto "+p.proto)
		}
	}
	return strings.Join(words, " ")
}

// ufwPermission is "" for answers, which ufw lets pass.
func ufwPermission(q *hostQuestion) string {
	p := &q.packet
	if p.state == "established" {
		return ""
	}
	words := []string{"ufw route allow in on " + p.in}
	if p.out != "" {
		words = append(words, "out on "+p.out)
	}
	if q.narrow {
		to := single(p.dst)
		if to == "" {
			to = "any"
		}
		words = append(words, "proto "+p.proto+" to "+to)
		if ports := q.ports(":"); ports != "" {
			words = append(words, "port "+ports)
		}
	}
	return strings.Join(words, " ")
}
