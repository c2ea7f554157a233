package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"tapgate/loader"
)

// saving is what is in force, or is about to be, on its way into the user's file. All that
// can be refused is refused, and all that takes room is written, before anything changes.
type saving struct {
	file   loader.SourceFile // as it will be
	staged *stagedFile       // nil: the file says so already
	was    []byte            // what the file held before; nil: it was not there
}

func addSave(cmd *cobra.Command, save *bool) {
	cmd.Flags().BoolVar(save, "save", false, "write it into the file that was applied, too; nothing changes if that cannot be done")
}

// configChange is a change of what is in force.
type configChange struct {
	before *document
	after  loader.Config
	// follows: the text of after was made from that of before, and has its comments.
	follows bool
}

// prepareSave makes the next content of a file. A file that somebody has changed since
// it was applied is not written, unless anew is set.
func prepareSave(gw gateway, path string, c configChange, anew bool) (*saving, error) {
	if path == "" {
		return nil, usagef("which file? What is in force was not made from one; to write one: tapgate config save FILE")
	}
	if p := gw.Pending(); p != nil {
		return nil, fmt.Errorf("a change waits for confirmation until %s, and would be saved before: tapgate confirm, or tapgate rollback", clockTime(p.Until))
	}
	// A link leads to the file that is written.
	target, err := filepath.EvalSymlinks(path)
	var content []byte
	switch {
	case errors.Is(err, os.ErrNotExist):
		if target, err = newFile(path); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	default:
		if content, err = readRegular(target); err != nil {
			return nil, err
		}
		if err := replaceable(target); err != nil {
			return nil, err
		}
	}
	next := c.after.Source
	if content != nil && !anew {
		if next, err = nextText(gw.File(), path, string(content), c); err != nil {
			return nil, err
		}
	}
	s := &saving{file: loader.SourceFile{Path: path, Sum: sumOf([]byte(next))}, was: content}
	if content == nil || next != string(content) {
		if s.staged, err = stageFile(target, []byte(next), 0o644); err != nil {
			return nil, fmt.Errorf("%s cannot be written, so nothing was changed: %w", path, err)
		}
	}
	return s, nil
}

// newFile is where a file is made that is not there.
func newFile(path string) (string, error) {
	if _, err := os.Lstat(path); err == nil {
		return "", fmt.Errorf("%s is a link to a file that is not there: make that one, or remove the link", path)
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	return filepath.Join(dir, filepath.Base(path)), err
}

// replaceable refuses what a rename would fail at only when it is too late.
func replaceable(path string) error {
	var is unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_NO_AUTOMOUNT, 0, &is); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	switch {
	case is.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0:
		return fmt.Errorf("%s must not be changed, says the file system (lsattr): nothing was changed", path)
	case is.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0:
		return fmt.Errorf("%s is mounted by itself, and cannot be replaced: nothing was changed; change it where it comes from", path)
	}
	return nil
}

// nextText is what a file with this content has to say after a change.
func nextText(known loader.SourceFile, path, content string, c configChange) (string, error) {
	text := strings.TrimPrefix(content, byteOrderMark)
	mark := content[:len(content)-len(text)]
	if text == c.before.Source && c.follows {
		return mark + c.after.Source, nil
	}
	doc, err := parseConfig(path, []byte(text))
	if err != nil {
		return "", fmt.Errorf("the file is not understood, so nothing was changed; put it right, or write it anew (tapgate config save --force): %v", errorLines(err)[0])
	}
	ours := known.Path == path && known.Sum == sumOf([]byte(content))
	if !ours && !sameMeaning(doc.Config, c.before.Config) && !sameMeaning(doc.Config, c.after) {
		return "", fmt.Errorf("what is in force was not made from %s as it is now, so nothing was changed: put the file in force first (tapgate apply -f %s), "+
			"or write it anew (tapgate config save --force), without what is new in it", path, path)
	}
	next, err := rewriteConfig(doc, c.after)
	if err != nil {
		return "", fmt.Errorf("%s cannot be changed without touching the rest of it (%v), so nothing was changed: change it yourself and apply it, "+
			"or write it anew (tapgate config save --force), without its comments", path, err)
	}
	return mark + next, nil
}

// save puts the prepared content into the file, now that it is in force.
func (e *env) save(gw gateway, s *saving) error {
	if s.staged != nil {
		if err := s.put(); err != nil {
			return fmt.Errorf("in force, but not saved in %s: %w; try again: tapgate config save", s.file.Path, err)
		}
		line := "saved in " + s.file.Path
		e.noteResult(&loader.Result{Changes: []string{line}})
		if err := e.write(printable(line) + "\n"); err != nil {
			return err
		}
	} else {
		e.say("already so: %s says what is in force", s.file.Path)
	}
	if err := gw.SetFile(s.file); err != nil {
		return fmt.Errorf("saved in %s, but that is not noted: %w", s.file.Path, err)
	}
	return nil
}

// put replaces the file, unless somebody has written it in the meantime.
func (s *saving) put() error {
	is, err := readRegular(s.staged.name)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err == nil && !bytes.Equal(is, s.was) {
		err = errors.New("somebody else has written it just now")
	}
	if err != nil {
		return err
	}
	staged := s.staged
	s.staged = nil
	return staged.put()
}

// drop gives up what was not saved.
func (s *saving) drop() error {
	if s == nil || s.staged == nil {
		return nil
	}
	return s.staged.drop()
}

func newConfigSaveCommand(e *env, g *globals) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "save [FILE]",
		Short: "Write the configuration in force into the file that was applied",
		Long: `Writes what is in force into the file that was applied last, or into FILE, which is the
file of what is in force from then on. Only the mirrors, forwards and masquerade rules
that differ are changed in a file; its comments stay. It is replaced at once or not at
all, and keeps its mode and owner.

A file that was changed since it was applied, or that holds something else, is not
touched; --force writes it anew, with the comments of what is in force only.`,
		Example: `  tapgate config save
  tapgate config save /etc/tapgate/tapgate.yaml
  tapgate rollback && tapgate config save --force`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) > 1:
				return usagef("one FILE, got %d", len(args))
			case len(args) == 1 && (args[0] == "" || args[0] == "-"):
				return usagef("the name of a FILE; to print it: tapgate config show")
			}
			return nil
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return []string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: e.privileged(func(_ *cobra.Command, args []string) error {
			path := ""
			if len(args) == 1 {
				var err error
				if path, err = filepath.Abs(args[0]); err != nil {
					return err
				}
			}
			return e.open(g, loader.ReadWrite, func(gw gateway) (err error) {
				doc, err := parseConfig("applied configuration", []byte(gw.Source()))
				if err != nil {
					return fmt.Errorf("what is in force was applied by another tapgate: %v", err)
				}
				if path == "" {
					path = gw.File().Path
				}
				s, err := prepareSave(gw, path, configChange{before: doc, after: doc.Config, follows: true}, force)
				if err != nil {
					return err
				}
				defer func() { err = errors.Join(err, s.drop()) }()
				return e.save(gw, s)
			})
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "write the file anew, whatever is in it")
	return cmd
}
