package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
)

// addFirewalld turns zones, policies and direct rules into rules as others have them.
func (im *imported) addFirewalld(from string, fw *firewalld) error {
	im.defaultZone = fw.defaultZone
	im.dropsForward = true
	interfaces := map[string][]string{}
	for _, z := range fw.zones {
		if !z.policy {
			interfaces[z.name] = z.interfaces
		}
	}
	// What no zone has is in the default one; only this machine can say what there is.
	for _, l := range im.links {
		if l.up && len(l.addrs) > 0 && !slices.Contains(slices.Concat(mapValues(interfaces)...), l.name) {
			interfaces[fw.defaultZone] = append(interfaces[fw.defaultZone], l.name)
			im.note("%s is in no zone of firewalld and so in its default one, %s", l.name, fw.defaultZone)
		}
	}
	count := 0
	slices.SortStableFunc(fw.zones, func(a, b fwZone) int { return cmp.Compare(a.priority, b.priority) })
	for _, z := range fw.zones {
		if z.policy {
			count += im.addPolicy(fw, z, interfaces)
		}
	}
	for _, z := range fw.zones {
		if !z.policy {
			z.interfaces = interfaces[z.name]
			count += im.addZone(z)
		}
	}
	for _, d := range fw.direct {
		count++
		im.addDirect(d)
	}
	im.found(from, count)
	return nil
}

func mapValues(m map[string][]string) (all [][]string) {
	for _, v := range m {
		all = append(all, v)
	}
	return all
}

// addZone takes over a zone and says how many rules are in it.
func (im *imported) addZone(z fwZone) int {
	base := fmt.Sprintf("firewall-cmd --permanent --zone=%s ", z.name)
	if len(z.sources) > 0 {
		im.note("zone %s has sources (%s): zones here are made of interfaces", z.name, strings.Join(z.sources, ", "))
	}
	if len(z.interfaces) == 0 {
		if z.masquerade && len(z.sources) == 0 && z.name != "external" || len(z.forwards) > 0 {
			im.note("zone %s has no interface: what it translates is not taken over", z.name)
		}
		return 0
	}
	im.zones = append(im.zones, importedZone{z.name, z.interfaces})
	return im.addTranslation(z, base, z.interfaces, nil)
}

// addPolicy takes over a policy between zones.
func (im *imported) addPolicy(fw *firewalld, z fwZone, interfaces map[string][]string) int {
	ends := func(zones []string) (list []string, ok bool) {
		for _, name := range zones {
			switch name {
			case "HOST":
				return nil, false
			case "ANY":
				return nil, true
			}
			list = append(list, interfaces[name]...)
		}
		return list, len(list) > 0
	}
	in, okIn := ends(z.ingress)
	if len(z.ingress) > 0 && z.ingress[0] == "HOST" {
		return 0 // the gateway's own traffic is the host's own firewall's business
	}
	out, okOut := ends(z.egress)
	forwards := len(z.forwards) > 0 && slices.Contains(z.egress, "HOST")
	if !okIn || !okOut && !forwards {
		return 0
	}
	base := fmt.Sprintf("firewall-cmd --permanent --policy=%s ", z.name)
	count := im.addTranslation(z, base, in, out)
	if forwards {
		return count
	}
	text := "firewalld policy " + z.name
	rule := hostRule{text: text, hook: "forward", in: in, out: out, ipv6: true}
	for _, service := range z.services {
		ports := fw.service(service)
		if ports == nil {
			im.note("policy %s: service %s is not taken over", z.name, service)
		}
		z.ports = append(z.ports, ports...)
	}
	for _, proto := range forwardProtos {
		r := rule
		r.action, r.protos = "accept", []string{proto}
		for _, p := range z.ports {
			if port, ok := strings.CutSuffix(p, "/"+proto); ok && !portOption(&r.ports, port) {
				im.note("policy %s: port %s is not taken over", z.name, p)
			}
		}
		if len(r.ports) > 0 {
			im.rules = append(im.rules, r)
			count++
		}
	}
	switch z.target {
	case "ACCEPT", "DROP", "REJECT":
		rule.action = "drop"
		if z.target == "ACCEPT" {
			rule.action = "accept"
		}
		im.rules = append(im.rules, rule)
		count++
	}
	return count
}

// service are the ports of a service, or nil where there is more to it.
func (fw *firewalld) service(name string) (ports []string) {
	for _, dir := range fw.services {
		n, err := readXML(filepath.Join(dir, name+".xml"))
		if err != nil {
			continue
		}
		for _, c := range n.Nodes {
			switch c.XMLName.Local {
			case "port":
				if c.attrs()["port"] == "" {
					return nil
				}
				ports = append(ports, c.attrs()["port"]+"/"+c.attrs()["protocol"])
			case "short", "description":
			default:
				return nil
			}
		}
		return ports
	}
	return nil
}

// addTranslation takes over what a zone or a policy translates. in are its interfaces,
// or those that a policy is from; out those that a policy is to.
func (im *imported) addTranslation(z fwZone, base string, in, out []string) (count int) {
	text := "firewalld zone " + z.name
	if z.policy {
		text = "firewalld policy " + z.name
	}
	masquerade := hostRule{text: text + ": masquerade", hook: "postrouting", action: "masquerade", out: in}
	if z.policy {
		masquerade.in, masquerade.out = in, out
	}
	if z.masquerade {
		r := masquerade
		r.undo = base + "--remove-masquerade"
		im.rules = append(im.rules, r)
		count++
	}
	forward := func(f fwForward, sources []netip.Prefix, undo string) {
		r := hostRule{text: text + ": forward port " + f.String(), undo: undo, hook: "prerouting", action: "dnat", in: in, src: sources, protos: []string{f.proto}}
		to := cmp.Or(f.toPort, f.port)
		addr, err := parseAddr(f.toAddr)
		if err != nil || !portOption(&r.ports, f.port) || !portNumbers(&r.toPorts, to) {
			im.note("not taken over: %s (it leads to no other host, or its ports are not understood)", r.text)
			return
		}
		r.to = addr
		im.rules = append(im.rules, r)
		count++
	}
	for _, f := range z.forwards {
		forward(f, nil, base+"--remove-forward-port="+f.String())
	}
	for _, rich := range z.rich {
		im.addRich(z, rich, text, masquerade, forward)
	}
	if !z.policy && (z.target == "ACCEPT" || z.masquerade) {
		r := hostRule{text: text + " (target " + z.target + ")", hook: "forward", action: "accept", in: in, ipv6: true}
		if z.masquerade {
			// Zones may open flows to where they are masqueraded, or firewalld's masquerade were of no use.
			r.in, r.out = nil, in
		}
		im.rules = append(im.rules, r)
	}
	return count
}

func (im *imported) addRich(z fwZone, rich fwRich, text string, masquerade hostRule, forward func(fwForward, []netip.Prefix, string)) {
	var sources []netip.Prefix
	source, limited := rich["source"]
	_, other := rich["destination"]
	if limited && (source["invert"] != "" || !prefixOption(&sources, source["address"])) {
		other = true
	}
	port, isForward := rich["forward-port"]
	_, isMasquerade := rich["masquerade"]
	switch {
	case isForward && !other:
		forward(fwForwardOf(port), sources, "")
	case isMasquerade && !other:
		masquerade.src, masquerade.text = sources, text+": rich rule with masquerade"
		masquerade.ipv6 = rich["rule"]["family"] == "ipv6"
		im.rules = append(im.rules, masquerade)
	case isForward, isMasquerade, z.policy:
		im.note("not taken over: a rich rule of %s", text)
	}
}

// addDirect takes over a rule of the direct interface, in which iptables' rules stand.
func (im *imported) addDirect(d fwDirect) {
	said := strings.TrimSpace(fmt.Sprintf("%s %s %s %s %s", d.ipv, d.table, d.chain, d.priority, d.args))
	words, ok := shellWords(d.args)
	for _, h := range iptablesHooks {
		if !ok || h.table != d.table || h.chain != d.chain || d.ipv == "eb" {
			continue
		}
		r := iptablesRule(words, d.ipv == "ipv6")
		r.action, r.hook = iptablesAction(r.action), h.hook
		r.text = "firewalld direct rule " + said
		if d.priority != "" {
			r.undo = "firewall-cmd --permanent --direct --remove-rule " + said
		}
		im.rules = append(im.rules, r.hostRule)
		return
	}
	if d.chain == "FORWARD" || d.table == "nat" || strings.Contains(d.args, "TEE") {
		im.note("not taken over: firewalld direct rule %s", said)
	}
}
