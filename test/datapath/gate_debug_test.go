package datapath

import (
	"fmt"

	"github.com/cilium/ebpf"
)

func (w *world) debugSweep() string {
	text := ""
	for range 70 {
		looked, err := w.programs["sweep"].Run(&ebpf.RunOptions{Data: make([]byte, 64)})
		text += fmt.Sprint(" ", looked, err)
	}
	b, _ := w.maps.bindings()
	text += "\n"
	for _, m := range b {
		text += fmt.Sprintln(m, "left", (w.now()-w.offset-int64(m.since))/1e9)
	}
	all, _ := w.maps.sessions()
	for _, m := range all {
		if m.key.Sport == 0 && m.key.Dport == 0 {
			text += fmt.Sprintln(m)
		}
	}
	a, _ := w.maps.account()
	return text + fmt.Sprint(a)
}
