package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon"
	"github.com/lacunafs/lacuna/internal/publish"
	"github.com/lacunafs/lacuna/internal/source/file"
	"github.com/lacunafs/lacuna/internal/source/oci"
)

// imageFlags say which image is meant and how its registry is spoken to.
type imageFlags struct {
	Platform  string `placeholder:"OS/ARCH" help:"Only this image of an index."`
	Authfile  string `placeholder:"FILE" help:"Credentials, in the form of docker's config.json or podman's auth.json."`
	HostsDir  string `placeholder:"DIR" help:"Mirrors, as containerd has them; /etc/containerd/certs.d by default."`
	PlainHTTP bool   `name:"plain-http" help:"Speak to the registry without encryption."`
}

// check finds what cannot be meant before anybody is asked.
func (f *imageFlags) check(verb, image string) error {
	wrong := func(err error, hint string) error {
		return &control.Error{Message: verb + ": " + err.Error(), Hint: hint, Exit: control.ExitUsage}
	}
	if err := oci.CheckReference(image); err != nil {
		return wrong(err, "write registry.example/repository:tag, oci-layout:DIR or docker-archive:FILE")
	}
	if err := oci.CheckPlatform(f.Platform); err != nil {
		return wrong(err, "write --platform linux/amd64 or linux/arm/v7")
	}
	if err := checkPath(verb+": --authfile", f.Authfile, false, "a file such as docker's config.json"); err != nil {
		return err
	}
	return checkPath(verb+": --hosts-dir", f.HostsDir, true, "a directory that has one for each registry, as /etc/containerd/certs.d has")
}

// checkPath wants what a flag names to be there, and to be what it must be.
func checkPath(flag, path string, directory bool, what string) error {
	if path == "" {
		return nil
	}
	wrong := ""
	st, err := os.Stat(path)
	var of *fs.PathError
	switch {
	case errors.As(err, &of):
		wrong = of.Err.Error()
	case directory && !st.IsDir():
		wrong = "it is not a directory"
	case !directory && st.IsDir():
		wrong = "it is a directory"
	default:
		return nil
	}
	return &control.Error{Message: fmt.Sprintf("%s %s: %s", flag, path, wrong), Hint: "name " + what, Exit: control.ExitUsage}
}

// options are how an image is asked for.
func (f *imageFlags) options() oci.Options {
	return oci.Options{
		Platform: f.Platform, Authfile: f.Authfile, DockerConfig: dockerConfig(), HostsDir: f.HostsDir, PlainHTTP: f.PlainHTTP,
		OpenFile: file.Open, UserAgent: "lacuna/" + version, Proxy: http.ProxyFromEnvironment,
	}
}

// targetFlags say where an image is put.
type targetFlags struct {
	Push   bool   `help:"Push it to the image's repository, or to that of --tag."`
	Tag    string `placeholder:"TAG" help:"What it is pushed as: a tag of the image's repository, or REGISTRY/REPOSITORY:TAG."`
	Output string `placeholder:"oci-layout:DIR[:TAG]" help:"Write it to a directory instead, with its layers."`
}

// target is where an image is put.
type target struct {
	layout string // directory; empty: ref is pushed to
	ref    string
	tag    string // empty: nothing is to be named
	note   string // what may not be meant; empty: nothing
}

// String is how others name what is put there.
func (t target) String() string {
	switch {
	case t.layout != "":
		return "oci-layout:" + t.layout + ":" + t.tag
	case t.tag == "":
		return t.ref
	}
	place, _, err := oci.SplitReference(t.ref)
	if err != nil {
		return t.ref
	}
	return place + ":" + t.tag
}

// resolve puts together what the flags say. suffix is added to the image's tag where no
// other one is given; empty: the image is not to be named anew.
func (f *targetFlags) resolve(verb, image, suffix string) (t target, err error) {
	wrong := func(hint, format string, args ...any) error {
		return &control.Error{Message: verb + ": " + fmt.Sprintf(format, args...), Hint: hint, Exit: control.ExitUsage}
	}
	place, tag, err := oci.SplitReference(image)
	if err != nil {
		return t, err
	}
	switch {
	case f.Push && f.Output != "":
		return t, wrong("leave one of them out", "--push and --output; it is one or the other")
	case !f.Push && f.Output == "":
		return t, wrong("--push, or --output oci-layout:DIR", "nothing says where to put it")
	case f.Output != "" && f.Tag != "":
		return t, wrong("write --output oci-layout:DIR:TAG", "--tag is for --push")
	case f.Output != "":
		rest, ok := strings.CutPrefix(f.Output, "oci-layout:")
		if !ok || rest == "" {
			return t, wrong("write --output oci-layout:DIR, with :TAG where it matters", "--output %s: not a layout", f.Output)
		}
		dir, given := rest, ""
		if i := strings.LastIndexByte(rest, ':'); i > 0 && !strings.Contains(rest[i:], "/") {
			dir, given = rest[:i], rest[i+1:]
		}
		for _, given := range []string{given, tag, "latest"} {
			if given != "" {
				return target{layout: dir, tag: given}, nil
			}
		}
	}
	if strings.ContainsAny(f.Tag, "/:") { // which no tag has
		place, tag, err := oci.SplitReference(f.Tag)
		if err != nil || !oci.IsRegistry(place) || tag == "" {
			return t, wrong("write --tag TAG, or --tag REGISTRY/REPOSITORY:TAG", "--tag %s: not a tag, and not a reference with one", f.Tag)
		}
		return target{ref: f.Tag, tag: tag}, nil
	}
	if !oci.IsRegistry(place) {
		return t, wrong("write --tag REGISTRY/REPOSITORY:TAG", "%s: it is in no registry, and --tag names none", image)
	}
	switch {
	case f.Tag != "":
		t.tag = f.Tag
	case suffix != "" && tag == "":
		return t, wrong("add --tag TAG", "%s: it has no tag that a new one could be made of", image)
	case suffix != "":
		t.tag = tag + suffix
		if strings.HasSuffix(tag, suffix) {
			t.note = fmt.Sprintf("the tag %s ends with %s already, and the new one is %s; --tag %s is to replace it", tag, suffix, t.tag, tag)
		}
	}
	t.ref = image
	if t.tag == "" {
		return t, nil
	}
	t.ref = place + ":" + t.tag
	if err := oci.CheckReference(t.ref); err != nil {
		return t, wrong("write --tag TAG", "--tag: %v", err)
	}
	return t, nil
}

// open makes no request.
func (t target) open(o oci.Options) (publish.Place, error) {
	if t.layout != "" {
		return publish.OpenLayout(t.layout)
	}
	return oci.OpenUpload(t.ref, o)
}

// reporter shows how making an image goes, for publish.Report.
func (a *app) reporter(what string) (publish.Report, func()) {
	p := newProgress(a.stderr)
	return publish.Report{
		Read: func(done, total int64) { p.show(what, done, total) },
		Note: func(text string) {
			p.end()
			a.notes([]string{text})
		},
	}, p.end
}

// platformText names an image by its platform.
func platformText(platform string) string { return cmp.Or(platform, "the image") }

// making is what a command has to make an image with.
type making struct {
	ctx    context.Context
	from   *oci.Whole
	to     publish.Place
	report publish.Report
}

// make opens an image and where another one is put, for work.
func (a *app) make(f *imageFlags, image string, to target, work func(making) error) (err error) {
	ctx, stop := interruptible()
	defer stop()
	if to.note != "" {
		a.notes([]string{to.note})
	}
	told := a.tellLater("asking for " + image)
	from, err := oci.OpenWhole(ctx, image, f.options())
	told()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	place, err := to.open(f.options())
	if err != nil {
		return to.explain(err)
	}
	defer func() { err = errors.Join(err, place.Close()) }()
	report, end := a.reporter("reading " + image)
	defer end()
	err = work(making{ctx, from, place, report})
	if err != nil && to.layout != "" {
		end()
		a.notes([]string{"what was written to " + pathText(to.layout) + " stays, and is used when this is tried again"})
	}
	if ctx.Err() != nil && err != nil {
		return ctx.Err() // which what is interrupted may word otherwise
	}
	return to.explain(err)
}

// explain names what is to be done where there is no room, or no place, for what is made.
func (t target) explain(err error) error {
	var of *fs.PathError
	temp := errors.As(err, &of) && filepath.Dir(of.Path) == filepath.Clean(os.TempDir())
	hint := ""
	switch full := errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT); {
	case full && temp:
		hint = "layers are unpacked in " + os.TempDir() + ": free space there, or name another directory with TMPDIR=DIR"
	case full && t.layout != "":
		hint = "free space on the filesystem of " + t.layout + ", or choose another directory"
	case full:
		hint = "free space on the filesystem of " + os.TempDir() + ", or name another directory with TMPDIR=DIR"
	case temp:
		hint = "layers are unpacked in " + os.TempDir() + ": name another directory with TMPDIR=DIR"
	default:
		return err
	}
	told := daemon.Explain(err)
	return &control.Error{Message: told.Message, Hint: hint, Exit: control.ExitError}
}
