package main

import (
	"bufio"
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
	torn      bool   // a line may have been cut short: the disk was full
	unwritten uint64 // events that were to be written since
	told      string // the last trouble that was logged

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
	l := &flowLog{out: stdout, close: func() error { return nil }}
	l.makeMetrics()
	if path == "-" {
		return l, nil
	}
	l.path = path
	return l, l.reopen()
}

// write writes whole lines, at best in one piece. Those that may not have been written
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

// encode says how many lines have been written for sure.
func (l *flowLog) encode(lines []flowLine) (done int, err error) {
	buffered := bufio.NewWriterSize(l.out, 1<<16)
	defer func() { l.torn = err != nil }()
	if l.torn {
		_ = buffered.WriteByte('\n') // an error shows when it is flushed
	}
	var one bytes.Buffer
	enc := json.NewEncoder(&one)
	enc.SetEscapeHTML(false)
	for i, line := range lines {
		one.Reset()
		if err := enc.Encode(line.what); err != nil {
			return done, err
		}
		if buffered.Available() < one.Len() {
			if err := buffered.Flush(); err != nil {
				return done, err
			}
			done = i
		}
		if _, err := buffered.Write(one.Bytes()); err != nil {
			return done, err
		}
	}
	if err := buffered.Flush(); err != nil {
		return done, err
	}
	return len(lines), nil
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
