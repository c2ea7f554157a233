package loader

import (
	"fmt"
	"slices"
	"strings"
)

// firewalldPermission are the commands that make firewalld let pass what it drops: a
// policy for each two of its zones, since from zone to zone it lets through only what a
// policy accepts, and forwards of its own by conntrack's state, which ours do not have.
func (f *hostFinder) firewalldPermission(d *hostDropped) (commands []string) {
	seen := map[string]bool{}
	for i := range d.asked {
		q := &d.asked[i]
		t := q.base.table
		prefix := ""
		if t.tool == "nft" {
			prefix = "filter_"
		}
		if t.chains[prefix+"FORWARD_POLICIES_pre"] == nil {
			return nil // before 0.9 there were no policies
		}
		from, to := t.zoneOf(prefix, q.packet.in), t.zoneOf(prefix, q.packet.out)
		if q.packet.state == "established" || from == "" || to == "" {
			continue
		}
		name := "tg-" + firstBytes(from, 6) + "-" + firstBytes(to, 6)
		policy := "firewall-cmd --permanent --policy=" + name
		if !slices.Contains(f.policies, name) {
			f.policies = append(f.policies, name)
			if t.chains[prefix+"FWD_policy_"+name] == nil && t.chains[prefix+"FWD_"+name] == nil {
				commands = append(commands, "firewall-cmd --permanent --new-policy="+name,
					policy+" --add-ingress-zone="+from, policy+" --add-egress-zone="+to)
			}
		}
		if c := policy + " " + q.firewalld(); !seen[c] {
			commands = append(commands, c)
			seen[c] = true
		}
	}
	if len(commands) > 0 {
		commands = append(commands, "firewall-cmd --reload")
	}
	return commands
}

// firewalld is what a policy needs to accept it.
func (q *hostQuestion) firewalld() string {
	if !q.narrow {
		return "--set-target=ACCEPT"
	}
	p := &q.packet
	family, to := "ipv4", ""
	if p.v6 {
		family = "ipv6"
	}
	if a := single(p.dst); a != "" {
		to = fmt.Sprintf(` destination address="%s"`, a)
	}
	what := fmt.Sprintf(`protocol value="%s"`, p.proto)
	if ports := q.ports("-"); ports != "" {
		what = fmt.Sprintf(`port port="%s" protocol="%s"`, ports, p.proto)
	}
	return fmt.Sprintf(`--add-rich-rule='rule family="%s"%s %s accept'`, family, to, what)
}

// zoneOf is firewalld's own zone of an interface.
func (t *hostTable) zoneOf(prefix, device string) string {
	c := t.chains[prefix+"FORWARD_ZONES"]
	if c == nil || device == "" {
		return ""
	}
	p := &hostPacket{in: device, state: "new", v6: t.family == "ip6"}
	for _, r := range c.rules {
		if r.match(p) == matchAll {
			return strings.TrimPrefix(r.target, prefix+"FWD_")
		}
	}
	return ""
}

func firstBytes(s string, n int) string { return s[:min(n, len(s))] }
