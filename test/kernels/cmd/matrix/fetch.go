package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"tapgate/test/kernels"
)

const (
	keyring    = "/usr/share/keyrings/debian-archive-keyring.gpg"
	archiveURL = "http://archive.debian.org/debian" // where suites go that are no longer supported
	maxAge     = 7 * 24 * time.Hour                 // of a kernel in the cache, before asking for a newer one
)

// image is an unpacked kernel package.
type image struct {
	kernel  string // path of vmlinuz
	modules string // folder lib/modules/RELEASE
	release string
}

// fetch returns the newest image of the kernel's suites, from the cache if it
// is not old. What is in the cache serves as well when there is no network.
func fetch(ctx context.Context, cache string, k kernels.Kernel, update bool) (*image, error) {
	folder := filepath.Join(cache, "kernels", k.Name)
	stamp := filepath.Join(folder, "asked")
	have, haveErr := findImage(folder)
	if info, err := os.Stat(stamp); err == nil && haveErr == nil && !update && time.Since(info.ModTime()) < maxAge {
		return have, nil
	}
	err := download(ctx, cache, folder, k)
	if err != nil {
		if haveErr != nil {
			return nil, err
		}
		fmt.Fprintf(os.Stderr, "kernels: %s: %v; going on with %s from the cache\n", k.Name, err, have.release)
		return have, nil
	}
	if err := os.WriteFile(stamp, nil, 0o644); err != nil {
		return nil, err
	}
	return findImage(folder)
}

func findImage(folder string) (*image, error) {
	one := func(patterns ...string) (string, error) {
		for _, p := range patterns {
			if hits, _ := filepath.Glob(filepath.Join(folder, "root", p)); len(hits) == 1 {
				return hits[0], nil
			}
		}
		return "", fmt.Errorf("no kernel in %s", folder)
	}
	modules, err := one("lib/modules/*", "usr/lib/modules/*")
	if err != nil {
		return nil, err
	}
	kernel, err := one("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz")
	if err != nil {
		return nil, err
	}
	return &image{kernel: kernel, modules: modules, release: filepath.Base(modules)}, nil
}

// download asks the mirror for the packages, with lists and state of its own so
// that nothing of this machine's apt changes, and unpacks them into folder/root.
func download(ctx context.Context, cache, folder string, k kernels.Kernel) error {
	for _, tool := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("kernels come as Debian packages: %w", err)
		}
	}
	if _, err := os.Stat(keyring); err != nil {
		return fmt.Errorf("%w: install the package debian-archive-keyring", err)
	}
	apt, err := newApt(folder, filepath.Join(cache, "debs"))
	if err != nil {
		return err
	}
	mirror, security := mirrors(ctx)
	err = apt.update(ctx, k.Suites, mirror, security)
	if err != nil {
		err = apt.update(ctx, k.Suites, archiveURL, archiveURL+"-security")
	}
	if err != nil {
		return err
	}
	packages, err := apt.images(ctx, k.Package)
	if err != nil {
		return err
	}
	debs, err := apt.download(ctx, packages)
	if err != nil {
		return err
	}
	fresh, root := filepath.Join(folder, "root.new"), filepath.Join(folder, "root")
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	for _, deb := range debs {
		if _, err := output(exec.CommandContext(ctx, "dpkg-deb", "-x", deb, fresh)); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(root); err != nil {
		return err
	}
	return os.Rename(fresh, root)
}

// mirrors returns where this machine gets Debian from, and its security updates.
func mirrors(ctx context.Context) (mirror, security string) {
	mirror, security = "http://deb.debian.org/debian", "http://deb.debian.org/debian-security"
	out, _ := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").Output()
	for line := range strings.Lines(string(out)) {
		uri := strings.TrimRight(line, "/\n")
		switch {
		case strings.HasSuffix(uri, "/debian"):
			mirror = uri
		case strings.HasSuffix(uri, "/debian-security"):
			security = uri
		}
	}
	return mirror, security
}

// apt is apt-get with sources, state and cache of its own.
type apt struct {
	sources string
	debs    string
	options []string
}

func newApt(folder, debs string) (*apt, error) {
	state, cache := filepath.Join(folder, "apt/state"), filepath.Join(folder, "apt/cache")
	for _, dir := range []string{filepath.Join(state, "lists/partial"), filepath.Join(cache, "archives/partial"), debs} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	a := &apt{sources: filepath.Join(folder, "apt/sources.list"), debs: debs}
	for _, o := range []string{
		"Dir::Etc::sourcelist=" + a.sources, "Dir::Etc::sourceparts=-",
		"Dir::Etc::preferences=-", "Dir::Etc::preferencesparts=-",
		"Dir::State=" + state, "Dir::State::status=/dev/null", "Dir::Cache=" + cache,
		"Acquire::Languages=none", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
		"Acquire::Retries=2", "APT::Sandbox::User=root", "APT::Architecture=amd64", "APT::Architectures=amd64",
	} {
		a.options = append(a.options, "-o", o)
	}
	return a, nil
}

func (a *apt) run(ctx context.Context, dir, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, append(slices.Clone(a.options), args...)...)
	cmd.Dir = dir
	return output(cmd)
}

func (a *apt) update(ctx context.Context, suites []string, mirror, security string) error {
	var text strings.Builder
	for _, suite := range suites {
		uri := mirror
		if strings.HasSuffix(suite, "-security") {
			uri = security
		}
		fmt.Fprintf(&text, "deb [signed-by=%s] %s %s main\n", keyring, uri, suite)
	}
	if err := os.WriteFile(a.sources, []byte(text.String()), 0o644); err != nil {
		return err
	}
	_, err := a.run(ctx, "", "apt-get", "-q", "--error-on=any", "update")
	return err
}

var (
	imagePackage = regexp.MustCompile(`(?m)^ +Depends: (linux-(?:image|binary|modules)-\S+)$`)
	versioned    = regexp.MustCompile(`^linux-[a-z]+-\d`)
)

// images follows a meta package to those that hold the kernel and its modules:
// one up to 7.1, two since.
func (a *apt) images(ctx context.Context, meta string) ([]string, error) {
	seen := []string{meta}
	for i := 0; i < len(seen); i++ {
		out, err := a.run(ctx, "", "apt-cache", "depends", seen[i])
		if err != nil {
			return nil, err
		}
		for _, m := range imagePackage.FindAllStringSubmatch(out, -1) {
			if !slices.Contains(seen, m[1]) {
				seen = append(seen, m[1])
			}
		}
	}
	found := slices.DeleteFunc(seen, func(p string) bool { return !versioned.MatchString(p) })
	if len(found) == 0 {
		return nil, fmt.Errorf("package %s leads to no kernel image", meta)
	}
	return found, nil
}

// download returns the paths of the packages' files; what is there already and
// unchanged is not loaded again.
func (a *apt) download(ctx context.Context, packages []string) ([]string, error) {
	uris, err := a.run(ctx, a.debs, "apt-get", append([]string{"-q", "download", "--print-uris"}, packages...)...)
	if err != nil {
		return nil, err
	}
	var debs []string
	for line := range strings.Lines(uris) {
		if f := strings.Fields(line); len(f) >= 3 && strings.HasSuffix(f[1], ".deb") {
			debs = append(debs, filepath.Join(a.debs, f[1]))
		}
	}
	if _, err := a.run(ctx, a.debs, "apt-get", append([]string{"-q", "download"}, packages...)...); err != nil {
		return nil, err
	}
	if len(debs) != len(packages) {
		return nil, fmt.Errorf("packages %v: the mirror named %d files", packages, len(debs))
	}
	return debs, nil
}

// output runs a command; its error holds what the command said.
func output(cmd *exec.Cmd) (string, error) {
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", filepath.Base(cmd.Path), cmd.Args[len(cmd.Args)-1], err, strings.TrimSpace(said.String()))
	}
	return string(out), nil
}
