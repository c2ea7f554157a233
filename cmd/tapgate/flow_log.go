package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// flowLog writes events as lines of JSON.
type flowLog struct {
	path string // "" for a stream that was given

	mu        sync.Mutex
	out       io.Writer
	close     func() error
	removed   func() bool // whether what is written goes into a file without a name
	torn      bool        // the last line was cut short: the disk was full, or a writer killed
	unwritten uint64      // events that were to be written since
	told      string      // the last trouble that was logged

	lines, lost *prometheus.CounterVec
	errors      prometheus.Counter
}

// flowLine is one to be written; so many events are missing without it.
type flowLine struct {
	event  string
	events uint64
	what   any
}

func openFlowLog(path string, stdout io.Writer) (*flowLog, error) {
	l := &flowLog{out: stdout, close: func() error { return nil }, removed: func() bool { return false }}
	l.makeMetrics()
	if path == "-" {
		return l, nil
	}
	l.path = path
	return l, l.reopen()
}

// write writes whole lines, at best in one piece. Those that have not been written
// are counted, and the log says so as soon as it can be written.
func (l *flowLog) write(lines ...flowLine) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	missing := l.unwritten
	if missing > 0 {
		lines = slices.Insert(lines, 0, flowLine{"lost", missing, flowLoss{markNow("lost"), lostUnwritten, missing, 0, 0}})
	}
	done, err := l.encode(lines)
	l.unwritten = 0
	for _, line := range lines[done:] {
		l.unwritten += line.events
		if line.event != "lost" { // those are counted already
			l.lost.WithLabelValues(lostUnwritten).Add(float64(line.events))
		}
	}
	for _, line := range lines[:done] {
		l.lines.WithLabelValues(line.event).Inc()
	}
	if err != nil {
		return fmt.Errorf("log of translations: %w", err)
	}
	l.told = ""
	return nil
}

// flowLogPiece is about how many bytes are written at once.
const flowLogPiece = 1 << 16

// encode says how many lines have been written.
func (l *flowLog) encode(lines []flowLine) (done int, err error) {
	if l.removed() {
		if err := l.open(); err != nil {
			return 0, err
		}
	}
	var text bytes.Buffer
	var ends []int // of the lines in it
	flush := func() error {
		n, err := l.out.Write(text.Bytes())
		if n > 0 {
			l.torn = text.Bytes()[n-1] != '\n'
		}
		for _, end := range ends {
			if end-1 <= n { // the newline comes before the next line
				done++
			}
		}
		text.Reset()
		ends = ends[:0]
		return err
	}
	if l.torn {
		text.WriteByte('\n')
	}
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	for _, line := range lines {
		if err := enc.Encode(line.what); err != nil {
			return done, err
		}
		if ends = append(ends, text.Len()); text.Len() >= flowLogPiece {
			if err := flush(); err != nil {
				return done, err
			}
		}
	}
	return done, flush()
}

// missing is how many events were to be written since what was written last.
func (l *flowLog) missing() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.unwritten
}

// news says whether this trouble is another one than that before, since which nothing
// was written.
func (l *flowLog) news(trouble string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if trouble == l.told {
		return false
	}
	l.told = trouble
	return true
}
