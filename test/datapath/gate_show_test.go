package datapath

import (
	"fmt"
	"strings"

	"tapgate/test/model"
)

// What is told of a difference.

func hookName(in, out int) string {
	if out != 0 {
		return fmt.Sprintf("%s egress from %s", ifnames[out], ifnames[in])
	}
	return fmt.Sprintf("%s ingress", ifnames[in])
}

func showAfter(did model.Outcome) string {
	if did.Verdict == model.Drop {
		return ""
	}
	return show(did.Frame)
}

func show(frame []byte) (text string) {
	defer func() {
		if recover() != nil {
			text = fmt.Sprintf("%x", frame)
		}
	}()
	h := hear(frame)
	text = fmt.Sprintf("[%d %s:%d > %s:%d", h.proto, h.src, h.sport, h.dst, h.dport)
	if h.proto == tcp {
		for i, c := range "FSRPA" {
			if h.flags&(1<<i) != 0 {
				text += string(c)
			}
		}
	}
	if h.failure() {
		l4 := 20
		if h.src.Is6() {
			l4 = 40
		} else {
			l4 = int(h.ip[0]&15) * 4
		}
		text += fmt.Sprintf(" type %d about %s", h.kind, show(append(make([]byte, 14), h.ip[l4+8:]...)))
	}
	return text + fmt.Sprintf(" len %d]", len(frame))
}

// story is what led to a difference, and what the program knows then.
func (w *world) story(err error) string {
	lines := []string{err.Error()}
	if w.scene != nil {
		lines = append(lines, fmt.Sprintf("scenario %s, fast %v; the last steps:", w.scene.scenario.name, w.fast))
	}
	lines = append(append(lines, w.log...), "the program's flows and mappings:")
	sessions, err1 := w.maps.sessions()
	bindings, err2 := w.maps.bindings()
	for _, s := range sessions {
		if s.half == 1 {
			lines = append(lines, fmt.Sprintf("%v\n    %v", s, sessions[s.other]))
		}
	}
	for _, b := range bindings {
		lines = append(lines, b.String())
	}
	for _, err := range []error{err1, err2} {
		if err != nil {
			lines = append(lines, err.Error())
		}
	}
	return strings.Join(lines, "\n")
}
