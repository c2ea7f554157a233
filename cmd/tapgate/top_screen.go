package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/term"
)

// ctrlC comes as a key in raw mode.
const ctrlC = 3

// Control sequences that every terminal of today understands (ECMA-48, xterm).
const (
	screenEnter = "\x1b[?1049h\x1b[?25l" // the alternate screen, without cursor
	screenLeave = "\x1b[?25h\x1b[?1049l"
	screenHome  = "\x1b[H"
	lineEnd     = "\x1b[K\r\n" // clear what was there before
	screenEnd   = "\x1b[J"
	bold        = "\x1b[1m"
	plain       = "\x1b[0m"
)

// titleMark begins a line that is drawn bold.
const titleMark = "\x00"

// screen is a terminal in raw mode.
type screen struct {
	in, out *os.File
	before  *term.State
	keys    chan byte
	resized chan os.Signal
	ended   chan os.Signal
}

func openScreen(stdin io.Reader, stdout io.Writer) (*screen, error) {
	in, inOK := stdin.(*os.File)
	out, outOK := stdout.(*os.File)
	if !inOK || !outOK || !term.IsTerminal(int(in.Fd())) || !term.IsTerminal(int(out.Fd())) {
		return nil, usagef("top needs a terminal; --once or --batch N print without one")
	}
	s := &screen{
		in: in, out: out, keys: make(chan byte),
		resized: make(chan os.Signal, 1), ended: make(chan os.Signal, 1),
	}
	var err error
	if s.before, err = term.MakeRaw(int(in.Fd())); err != nil {
		return nil, fmt.Errorf("set the terminal to raw mode: %w", err)
	}
	signal.Notify(s.resized, syscall.SIGWINCH)
	signal.Notify(s.ended, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT)
	if _, err := io.WriteString(out, screenEnter); err != nil {
		return nil, errors.Join(err, s.close())
	}
	go func() { // until the program ends
		var b [1]byte
		for {
			if n, err := in.Read(b[:]); err != nil || n == 0 {
				close(s.ended) // the terminal is gone
				return
			}
			s.keys <- b[0]
		}
	}()
	return s, nil
}

// close leaves the terminal as it was.
func (s *screen) close() error {
	signal.Stop(s.resized)
	_, err := io.WriteString(s.out, screenLeave)
	return errors.Join(err, term.Restore(int(s.in.Fd()), s.before))
}

func (s *screen) size() (width, height int) {
	width, height, err := term.GetSize(int(s.out.Fd()))
	if err != nil || width < 1 || height < 1 {
		return 80, 24
	}
	return width, height
}

// draw puts lines on the screen in one piece, so that it does not flicker.
func (s *screen) draw(lines []string) error {
	var b strings.Builder
	b.WriteString(screenHome)
	for i, l := range lines {
		if i > 0 {
			b.WriteString(lineEnd)
		}
		if title, ok := strings.CutPrefix(l, titleMark); ok {
			l = bold + title + plain
		}
		b.WriteString(l)
	}
	b.WriteString("\x1b[K" + screenEnd)
	if _, err := io.WriteString(s.out, b.String()); err != nil {
		return fmt.Errorf("draw: %w", err)
	}
	return nil
}
