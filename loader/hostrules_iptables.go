package loader

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// parseIptables reads what iptables-save printed. The tool is the command that
// changes such rules: "iptables", "ip6tables-legacy". Tables that the tool could not
// read are left out.
func parseIptables(text, tool string) (tables []*hostTable) {
	family := "ip"
	if strings.HasPrefix(tool, "ip6") {
		family = "ip6"
	}
	var t *hostTable
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case line[0] == '*':
			t = newHostTable(tool, family, line[1:])
			tables = append(tables, t)
		case t == nil:
		case line == "COMMIT":
			t = nil
		case line[0] == ':':
			name, rest, _ := strings.Cut(line[1:], " ")
			c := t.chain(name)
			if policy, _, _ := strings.Cut(rest, " "); policy != "-" {
				c.hook, c.kind = strings.ToLower(name), iptablesKind(t.name)
				if c.drops = policy == "DROP"; c.drops {
					c.policy.verdict = hostDrop
				}
			}
		case strings.HasPrefix(line, "-A "):
			words := shellWords(line)
			if len(words) < 2 {
				continue
			}
			c := t.chain(words[1])
			r := &hostRule{chain: c, text: strings.TrimPrefix(line, "-A "), quoted: shellQuote(words[1:])}
			r.options(words[2:])
			c.rules = append(c.rules, r)
		}
	}
	return tables
}

// iptablesKind: a drop counts in any table, a translation in one.
func iptablesKind(table string) string {
	if table == "nat" {
		return "nat"
	}
	return "filter"
}

// shellWords takes a line apart as a shell does. iptables quotes with " and \ only.
func shellWords(line string) (words []string) {
	var word strings.Builder
	inWord, quoted := false, false
	for i := 0; i < len(line); i++ {
		switch b := line[i]; {
		case b == '\\' && i+1 < len(line):
			i++
			word.WriteByte(line[i])
			inWord = true
		case b == '"':
			quoted, inWord = !quoted, true
		case b == ' ' && !quoted:
			if inWord {
				words = append(words, word.String())
			}
			word.Reset()
			inWord = false
		default:
			word.WriteByte(b)
			inWord = true
		}
	}
	if inWord {
		words = append(words, word.String())
	}
	return words
}

// plainWord needs no quotes.
var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:,+=@%-]+$`)

// shellQuote is the other way: words that a shell takes for these.
func shellQuote(words []string) string {
	quoted := slices.Clone(words)
	for i, w := range quoted {
		if !plainWord.MatchString(w) && w != "!" {
			quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}

// Of these matches every option is known.
var iptablesKnown = []string{"tcp", "udp", "comment", "conntrack", "state", "multiport", "addrtype"}

// options reads what follows the chain's name.
func (r *hostRule) options(words []string) {
	not := false
	for i := 0; i < len(words); i++ {
		option, value := words[i], ""
		if i+1 < len(words) {
			value = words[i+1]
		}
		if option == "!" {
			not = true
			continue
		}
		c := hostCond{not: not}
		not = false
		switch option {
		case "-j", "-g":
			r.verdict, r.target = xtVerdict(value), ""
			if r.verdict == hostNothing && r.chain.table.chains[value] != nil {
				if r.verdict, r.target = hostJump, value; option == "-g" {
					r.verdict = hostGoto
				}
			}
			r.reject = value == "REJECT"
			return // the rest is the target's
		case "-m":
			i++
			if slices.Contains(iptablesKnown, value) {
				continue
			}
			r.conds = append(r.conds, hostCond{})
			continue
		case "--comment":
			i++
			continue
		}
		if strings.HasPrefix(option, "-") && !strings.HasPrefix(value, "-") && value != "!" {
			i++
		}
		if !c.option(option, value) {
			c = hostCond{}
		}
		r.conds = append(r.conds, c)
	}
}

// option makes the condition of an option; false if it is not understood.
func (c *hostCond) option(option, value string) bool {
	fields := map[string]hostField{
		"-i": fieldIn, "-o": fieldOut, "-s": fieldSrc, "-d": fieldDst, "-p": fieldProto, "--sport": fieldSport, "--sports": fieldSport,
		"--dport": fieldDport, "--dports": fieldDport, "--ctstate": fieldState, "--state": fieldState, "--ctstatus": fieldStatus,
		"--src-type": fieldSrcType, "--dst-type": fieldDstType,
	}
	c.field = fields[option]
	switch c.field {
	case fieldUnknown:
		return false
	case fieldSrc, fieldDst:
		p, err := parseHostPrefix(value)
		return err == nil && c.addSpan(spanOf(p))
	case fieldIn, fieldOut:
		if stem, any := strings.CutSuffix(value, "+"); any {
			value = stem + "*"
		}
		return c.addRange(value, value)
	case fieldSport, fieldDport:
		for one := range strings.SplitSeq(value, ",") {
			first, last, is := strings.Cut(one, ":")
			if !is {
				last = first
			}
			if !c.addRange(first, last) {
				return false
			}
		}
		return true
	}
	for one := range strings.SplitSeq(strings.ToLower(value), ",") {
		c.addRange(one, one)
	}
	return true
}

// parseHostPrefix reads "10.0.0.0/8", also with a mask of four numbers.
func parseHostPrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Prefix(a.BitLen())
	}
	return netip.ParsePrefix(s)
}

// xtVerdict is what a target of iptables does. Others, which mark, log or count, let
// the packet go on.
func xtVerdict(name string) hostVerdict {
	switch name {
	case "ACCEPT":
		return hostAccept
	case "DROP", "REJECT", "TARPIT":
		return hostDrop
	case "RETURN":
		return hostReturn
	case "MASQUERADE", "SNAT":
		return hostSource
	case "DNAT", "REDIRECT":
		return hostDestination
	case "NETMAP", "QUEUE", "NFQUEUE", "TPROXY":
		return hostUnknown
	}
	return hostNothing
}
