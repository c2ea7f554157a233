package main

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"tapgate/loader"
)

// lines shows the last look, in lines of at most this width, and no more of them
// than height, if that is above zero. Flows get what the rest leaves, and at least
// some lines.
func (t *top) lines(width, height int) []string {
	live := height > 0
	v := &topView{width: width, live: live}
	v.title(t)
	if t.now != nil {
		v.span = 0
		if t.was != nil {
			v.span = t.now.at.Sub(t.was.at).Seconds()
		}
		v.totals(t)
		v.interfaces(t)
		v.mirrors(t)
		v.skips(t)
	}
	if live {
		const flowsAtLeast = 6 // with the headings
		if room := max(1, height-flowsAtLeast-1); len(v.out) > room {
			v.out = append(v.out[:room-1], clip("... (a higher window shows more)", width))
		}
	}
	if t.now != nil {
		v.flows(t, height-len(v.out)-2)
	}
	if live {
		v.out = v.out[:min(len(v.out), height-1)]
		for len(v.out) < height-1 {
			v.out = append(v.out, "")
		}
		v.out = append(v.out, clip("s sort  p pause  + - interval  q quit", width))
		v.out = v.out[max(0, len(v.out)-height):]
	}
	return v.out
}

// topView collects lines.
type topView struct {
	width int
	live  bool
	span  float64 // seconds between the two looks
	out   []string
}

func (v *topView) line(text string) { v.out = append(v.out, clip(printable(text), v.width)) }

func (v *topView) bold(text string) {
	text = clip(printable(text), v.width)
	if v.live {
		text = titleMark + text
	}
	v.out = append(v.out, text)
}

func (v *topView) title(t *top) {
	parts := []string{"tapgate top"}
	if t.now != nil {
		parts = append(parts, "namespace "+t.now.status.Netns, t.now.at.Format("15:04:05"))
	}
	parts = append(parts, "every "+t.interval.String())
	if t.paused {
		parts = append(parts, "PAUSED")
	}
	v.bold(strings.Join(parts, "  "))
	if t.err != nil {
		v.line("not now: " + strings.Join(errorLines(t.err), "; "))
	}
}

// perSecond is how fast a counter grows, which may have been set to zero.
func (v *topView) perSecond(now, was uint64) float64 {
	if v.span <= 0 {
		return 0
	}
	if now < was {
		was = 0
	}
	return float64(now-was) / v.span
}

func (v *topView) totals(t *top) {
	s := t.now.status
	if g := s.Gateway; g != nil {
		was := &loader.GatewayStatus{Created: g.Created, Expired: g.Expired, Refused: g.Refused}
		if t.was != nil && t.was.status.Gateway != nil {
			was = t.was.status.Gateway
		}
		var refused float64
		for why, n := range g.Refused {
			refused += v.perSecond(n, was.Refused[why])
		}
		v.line(fmt.Sprintf("flows %d of %d, unanswered %d of %d, %s", g.Flows, g.MaxFlows, g.Fresh, g.MaxFresh, counted(g.Hosts, "host")))
		v.line(fmt.Sprintf("a second: %s new, %s ended, %s refused; forwarding: %s", rate(v.perSecond(g.Created, was.Created)),
			rate(v.perSecond(g.Expired, was.Expired)), rate(refused), g.Forwarding.Mode))
	}
	if n := len(s.Problems); n > 0 {
		v.line(fmt.Sprintf("%s: %s", counted(n, "problem"), s.Problems[0]))
	}
}

// row is a name that takes the rest of the line, and numbers to the right.
func (v *topView) row(name string, widths []int, cells ...string) string {
	var right strings.Builder
	for i, c := range cells {
		fmt.Fprintf(&right, "%*s", widths[i], c)
	}
	left := max(8, v.width-utf8.RuneCountInString(right.String()))
	name = clip(printable(name), left-1)
	return name + strings.Repeat(" ", left-utf8.RuneCountInString(name)) + right.String()
}

func (v *topView) interfaces(t *top) {
	if len(t.now.status.Members) == 0 {
		return
	}
	widths := []int{11, 10, 8, 11, 8, 8}
	v.out = append(v.out, "")
	v.bold(v.row("interface", widths, "zone", "in pkt/s", "bit/s", "out pkt/s", "bit/s", "drop/s"))
	before := map[string]loader.MemberStatus{}
	if t.was != nil {
		for _, m := range t.was.status.Members {
			before[m.Interface] = m
		}
	}
	for _, m := range t.now.status.Members {
		was, cells, drops := before[m.Interface], []string{clip(m.Zone, 9)}, 0.0
		for _, d := range [][2]*loader.DirectionStatus{{m.Ingress, was.Ingress}, {m.Egress, was.Egress}} {
			if d[0] == nil {
				cells = append(cells, "-", "-")
				continue
			}
			if d[1] == nil {
				d[1] = d[0]
			}
			cells = append(cells, v.rates(d[0].Seen, d[1].Seen)...)
			for reason, n := range d[0].Reasons {
				if strings.HasPrefix(reason, "drop_") {
					drops += v.perSecond(n, d[1].Reasons[reason])
				}
			}
		}
		v.line(v.row(m.Interface, widths, append(cells, rate(drops))...))
	}
}

// rates are packets and bits a second.
func (v *topView) rates(now, was loader.Count) []string {
	return []string{rate(v.perSecond(now.Packets, was.Packets)), rate(8 * v.perSecond(now.Bytes, was.Bytes))}
}

// topLedger is the account of a mirror or target at both looks.
type topLedger struct {
	mirror, name string
	now, was     loader.Ledger
	target       bool
}

// ledgers are mirrors, each followed by its targets.
func (t *top) ledgers() (list []topLedger) {
	before := map[string]loader.Ledger{}
	if t.was != nil {
		for _, m := range t.was.status.Mirrors {
			before[m.Name] = m.Ledger
			for _, target := range m.Targets {
				before[m.Name+"\x00"+target.Target] = target.Ledger
			}
		}
	}
	add := func(mirror, name, key string, now loader.Ledger, target bool) {
		was, had := before[key]
		if !had {
			was = now
		}
		list = append(list, topLedger{mirror, name, now, was, target})
	}
	for _, m := range t.now.status.Mirrors {
		add(m.Name, m.Name+" ("+strings.Join(m.Zones, ", ")+")", m.Name, m.Ledger, false)
		for _, target := range m.Targets {
			add(m.Name, target.Target, m.Name+"\x00"+target.Target, target.Ledger, true)
		}
	}
	return list
}

func (v *topView) mirrors(t *top) {
	list := t.ledgers()
	if len(list) == 0 {
		return
	}
	widths := []int{10, 10, 9, 10, 10}
	v.out = append(v.out, "")
	v.bold(v.row("mirror, target", widths, "matched/s", "copied/s", "bit/s", "refused/s", "skipped/s"))
	for _, l := range list {
		name := l.name
		if l.target {
			name = "- " + name
		}
		var skipped float64
		for why, n := range l.now.Skipped {
			skipped += v.perSecond(n.Packets, l.was.Skipped[why].Packets)
		}
		copied := v.rates(l.now.Copied, l.was.Copied)
		v.line(v.row(name, widths, rate(v.perSecond(l.now.Matched.Packets, l.was.Matched.Packets)), copied[0], copied[1],
			rate(v.perSecond(l.now.Refused.Packets, l.was.Refused.Packets)), rate(skipped)))
	}
}

// skips says why targets have not got copies, if ever.
func (v *topView) skips(t *top) {
	widths := []int{14, 10, 12}
	first := true
	for _, l := range t.ledgers() {
		if !l.target {
			continue
		}
		for _, why := range slices.Sorted(maps.Keys(l.now.Skipped)) {
			n := l.now.Skipped[why]
			if n.Packets == 0 {
				continue
			}
			if first {
				v.out = append(v.out, "")
				v.bold(v.row("skipped", widths, "reason", "packets/s", "ever"))
				first = false
			}
			v.line(v.row(l.mirror+": "+l.name, widths, why, rate(v.perSecond(n.Packets, l.was.Skipped[why].Packets)), rate(float64(n.Packets))))
		}
	}
}

// flows shows as many as there is room for; all in a batch.
func (v *topView) flows(t *top, room int) {
	if t.now.status.Gateway == nil {
		return
	}
	widths := []int{9, 9, 9, 5}
	v.out = append(v.out, "")
	v.bold(v.row("flows by "+topOrderText(topOrders[t.order]), widths, "packets/s", "bit/s", "bytes", "fast"))
	room -= 1
	for i, f := range t.now.flows {
		if v.live && i >= room {
			break
		}
		arrow := " > "
		if f.FromOutside {
			arrow = " < "
		}
		left := max(8, v.width-32) - 1 - len(f.Proto) - 1 - len(arrow)
		inside, remote := f.Inside, f.Remote
		if utf8.RuneCountInString(inside)+utf8.RuneCountInString(remote) > left {
			inside = shorten(inside, max(left/2, left-utf8.RuneCountInString(remote)))
			remote = shorten(remote, left-utf8.RuneCountInString(inside))
		}
		v.line(v.row(f.Proto+" "+inside+arrow+remote, widths, rate(f.PacketRate), rate(8*f.ByteRate), rate(float64(f.Bytes)), yesNo(f.Fast)))
	}
}

func topOrderText(o loader.FlowOrder) string {
	switch o {
	case loader.ByBytes:
		return "bytes a second"
	case loader.ByPackets:
		return "packets a second"
	case loader.ByTotalBytes:
		return "bytes"
	}
	return "packets"
}

// clip cuts a text to so many characters.
func clip(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	if width < 1 {
		return ""
	}
	return string([]rune(s)[:width-1]) + "~"
}

// shorten takes characters out of the middle: addresses differ at both ends.
func shorten(s string, width int) string {
	r := []rune(s)
	if len(r) <= width {
		return s
	}
	if width < 3 {
		return clip(s, width)
	}
	tail := (width - 1) * 2 / 3
	return string(r[:width-1-tail]) + "~" + string(r[len(r)-tail:])
}

// rate makes a number readable in six characters: "0", "0.5", "999", "1.5k", "12M".
func rate(n float64) string {
	switch {
	case n < 9.5 && n == math.Trunc(n):
		return fmt.Sprintf("%.0f", n)
	case n < 9.95:
		return fmt.Sprintf("%.1f", n)
	}
	unit := -1
	for n >= 999.5 && unit < 5 {
		n /= 1000
		unit++
	}
	format := "%.0f"
	if n < 9.95 {
		format = "%.1f"
	}
	text := fmt.Sprintf(format, n)
	if unit >= 0 {
		text += string("kMGTPE"[unit])
	}
	return text
}
