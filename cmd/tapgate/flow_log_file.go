package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// reopen opens the file anew, since the old one may have another name now. When that
// fails it goes on with the old one.
func (l *flowLog) reopen() error {
	if l.path == "" {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.open(); err != nil {
		return fmt.Errorf("log of translations: %w", err)
	}
	return nil
}

// open is reopen for who holds the lock.
func (l *flowLog) open() error {
	// To open a FIFO that nobody reads would wait until somebody does.
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NONBLOCK, 0o640)
	if errors.Is(err, unix.ENXIO) {
		err = fmt.Errorf("%w: a FIFO that nobody reads, or a socket", err)
	}
	if err != nil {
		return err
	}
	err = l.close()
	l.out, l.close, l.torn = f, f.Close, endsTorn(f)
	l.removed = func() bool {
		st, err := f.Stat()
		return err == nil && st.Mode().IsRegular() && st.Sys().(*syscall.Stat_t).Nlink == 0
	}
	return err
}

// endsTorn says whether a file ends within a line, as one does whose writer was killed.
func endsTorn(f *os.File) bool {
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() || st.Size() == 0 {
		return false
	}
	r, err := os.Open(f.Name())
	if err != nil {
		return false
	}
	defer r.Close()
	last := make([]byte, 1)
	_, err = r.ReadAt(last, st.Size()-1)
	return err == nil && last[0] != '\n'
}
