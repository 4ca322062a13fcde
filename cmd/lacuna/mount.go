package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon"
)

// mountCmd makes an image, or the files of a manifest, appear as a directory.
type mountCmd struct {
	Image      string  `arg:"" name:"IMAGE" optional:"" help:"Reference of an image, or oci-layout:DIR or docker-archive:FILE."`
	Dir        string  `arg:"" name:"DIR" optional:"" help:"Where it appears: a name that is free, or an empty directory."`
	Manifest   string  `placeholder:"FILE" help:"Mount the files that it lists, in place of an image: lacuna mount --manifest FILE DIR."`
	Platform   string  `placeholder:"OS/ARCH" help:"Which image of an index; this machine's by default."`
	Authfile   string  `placeholder:"FILE" help:"Credentials, in the form of docker's config.json or podman's auth.json."`
	HostsDir   string  `placeholder:"DIR" help:"Mirrors, as containerd has them; /etc/containerd/certs.d by default."`
	PlainHTTP  bool    `name:"plain-http" help:"Speak to the registry without encryption."`
	Format     *string `placeholder:"FORMAT" help:"Read layers as estargz, zstdchunked, soci, soci-v2, soci-v1 or scanned, not in the best way that each has."`
	Foreground bool    `help:"Serve it from this command, also where a daemon listens, beside which it needs another --root."`
}

// Usage are the two forms of the command.
func (mountCmd) Usage() []string {
	return []string{
		"[--platform OS/ARCH] [--authfile FILE] [--hosts-dir DIR] [--plain-http] [--format FORMAT] [--foreground] IMAGE DIR",
		"--manifest FILE [--foreground] DIR",
	}
}

// Help is the long help.
func (mountCmd) Help() string {
	return `IMAGE is a reference such as registry.example/app:1, with a digest or a tag, or
oci-layout:DIR[:TAG], or docker-archive:FILE[:NAME:TAG]. DIR is where its
filesystem appears, whole and read-only, as a native EROFS filesystem of the
kernel; one that does not exist is made, and removed when it is unmounted. All
names are there at once; data is fetched, and verified, when it is read, and
stays in the cache.

Layers in the eStargz and zstd:chunked formats are mounted without a download,
and so are gzip layers with a SOCI index, of version 2 if there is one. Other
layers are downloaded whole, once, when they are first mounted; "lacuna index"
makes an index for such an image. "lacuna status" says how each is read. With
--format there is no other way: a layer that has not got it is an error, which
says what the layers have. soci is of either version, and layers that the index
leaves out for being small are downloaded; scanned downloads all.

Credentials come from docker's configuration, or from --authfile. Registries on
this machine, and those for which --plain-http is given, are spoken to without
encryption.

With --manifest there is no IMAGE, and FILE is a JSON list of files, each with
its source:

  [{"path": "train/0.tar", "url": "https://example.org/0.tar", "size": 1048576,
    "sha256": "...", "mode": "0444", "mtime": "2026-01-02T15:04:05Z"}]

path and url are needed; url may be the absolute path of a local file. A source
is asked for a size that is left out; where all are there, the mount takes no
network. Files with a sha256 of up to 1 MiB are verified before they are read,
larger ones once all of one is here. A file whose source fails, has changed or
has another digest gives EIO; the others do not.

Where a daemon listens, it serves DIR, and the command returns. Otherwise the
command serves it itself: it prints "ready" when it is mounted, runs until
SIGINT or SIGTERM, and unmounts it again.

  # lacuna mount registry.example/app:1 /mnt/app
  ready

EXIT STATUS
  0  it is mounted; in the foreground: it was, until a signal
  1  error, such as a full disk
  2  wrong usage, a manifest that is none; DIR is not empty, lies in the cache
  3  not supported by this kernel or the cache's filesystem, or not root
  4  a layer or the manifest is not what its digest says
  5  the registry cannot be reached, or does not give the image
  6  something is mounted on DIR, or another instance has the cache`
}

// Run is the verb.
func (c *mountCmd) Run(a *app) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	if err := c.check(); err != nil {
		return err
	}
	q := control.MountRequest{Platform: c.Platform, PlainHTTP: c.PlainHTTP, DockerConfig: dockerConfig()}
	if c.Format != nil {
		q.Format = *c.Format
	}
	if q.Image, err = absoluteImage(c.Image); err != nil {
		return err
	}
	for _, p := range []struct {
		to   *string
		from string
	}{{&q.Dir, c.Dir}, {&q.Authfile, c.Authfile}, {&q.HostsDir, c.HostsDir}, {&q.Manifest, c.Manifest}} {
		if p.from == "" && p.to != &q.Dir {
			continue
		}
		if *p.to, err = filepath.Abs(p.from); err != nil {
			return fmt.Errorf("find %s: %w", p.from, err)
		}
	}
	ctx, stop := interruptible()
	defer stop()
	client, err := a.dialUnless(ctx, c.Foreground, cfg)
	if err != nil {
		return err
	}
	told := a.tellWaiting("asking for "+c.Image+c.Manifest, "; layers without an index are downloaded whole, once")
	defer told()
	if client == nil {
		return a.foreground(daemon.Settings{Config: cfg, Mount: &q}, told)
	}
	defer client.Close()
	reply, err := client.Mount(ctx, q)
	told()
	if err != nil {
		return err
	}
	a.notes(reply.Notes)
	if c.Manifest != "" {
		return a.print("mounted %s (%s, %s)\n", pathText(q.Dir), count(reply.Files, "file"), sizeText(reply.Size))
	}
	return a.print("mounted %s (%s, %s, %s)\n", pathText(q.Dir), count(reply.Layers, "layer"), count(reply.Files, "file"), sizeText(reply.Size))
}

// check wants an image or a manifest, and a directory.
func (c *mountCmd) check() error {
	wrong := func(message string) error {
		return &control.Error{Message: message, Hint: "lacuna mount IMAGE DIR, or lacuna mount --manifest FILE DIR", Exit: control.ExitUsage}
	}
	if c.Manifest != "" {
		if c.Dir != "" {
			return wrong("mount: an image and a manifest; it is one or the other")
		}
		c.Dir, c.Image = c.Image, ""
		if c.Platform != "" || c.Authfile != "" || c.HostsDir != "" || c.PlainHTTP || c.Format != nil {
			return wrong("mount: --platform, --authfile, --hosts-dir, --plain-http and --format are for images, not for a manifest")
		}
	} else if c.Image == "" {
		return wrong("mount: no image is given")
	}
	if c.Dir == "" {
		return wrong("mount: no directory is given")
	}
	if c.Manifest == "-" {
		return &control.Error{
			Message: "mount: --manifest -: it is not read from standard input", Hint: "write the list to a file, and name that", Exit: control.ExitUsage,
		}
	}
	if c.Manifest != "" {
		return checkPath("mount: --manifest", c.Manifest, false, "a JSON list of files; `lacuna mount --help` shows one")
	}
	if err := c.checkPaths(); err != nil {
		return err
	}
	if c.Format != nil {
		if *c.Format == "" {
			return &control.Error{Message: "mount: --format: it is empty", Hint: "leave it out, and each layer is read in the best way that it has", Exit: control.ExitUsage}
		}
		if err := daemon.CheckFormat(*c.Format); err != nil {
			return fmt.Errorf("mount: --format: %w", err)
		}
	}
	f := imageFlags{Platform: c.Platform, Authfile: c.Authfile, HostsDir: c.HostsDir}
	return f.check("mount", c.Image)
}

// checkPaths finds an image that is a file here, which no registry would have, and
// arguments in the wrong order.
func (c *mountCmd) checkPaths() error {
	wrong := func(hint, format string, args ...any) error {
		return &control.Error{Message: "mount: " + fmt.Sprintf(format, args...), Hint: hint, Exit: control.ExitUsage}
	}
	st, err := os.Stat(c.Image)
	if err != nil {
		return nil //nolint:nilerr // it is no path, as it should be
	}
	if st.Mode().IsRegular() {
		return wrong("did you mean docker-archive:"+c.Image+"?", "%s is a file here, and no image of a registry", c.Image)
	}
	if _, err := os.Stat(filepath.Join(c.Image, "oci-layout")); err == nil {
		return wrong("did you mean oci-layout:"+c.Image+"?", "%s is a directory here, and no image of a registry", c.Image)
	}
	if _, err := os.Stat(filepath.Dir(c.Dir)); err != nil && strings.ContainsAny(c.Dir, ":@") {
		return wrong("the image comes first: lacuna mount IMAGE DIR", "DIR is %s, and IMAGE a directory", c.Dir)
	}
	return nil
}

// absoluteImage makes the path in a reference absolute: the daemon lives elsewhere.
func absoluteImage(ref string) (string, error) {
	for _, kind := range []string{"oci-layout:", "docker-archive:"} {
		path, ok := strings.CutPrefix(ref, kind)
		if !ok {
			continue
		}
		abs, err := filepath.Abs(path)
		if err != nil {
			return "", fmt.Errorf("find %s: %w", path, err)
		}
		return kind + abs, nil
	}
	return ref, nil
}

// dockerConfig is where docker keeps credentials for this user.
func dockerConfig() string {
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return dir
	}
	if home, err := os.UserHomeDir(); err == nil {
		return filepath.Join(home, ".docker")
	}
	return ""
}

// umountCmd undoes mount.
type umountCmd struct {
	Dirs []string `arg:"" name:"DIR" help:"Where they are mounted."`
	Lazy bool     `help:"Take the name away at once, and the rest when nobody uses it any more."`
}

// Help is the long help.
func (umountCmd) Help() string {
	return `DIR is where an image or a manifest is mounted. A mount that somebody uses
stays; the message names who. With --lazy its name goes at once, and those who
use it are served until they are done. What was fetched stays in the cache.
Of several, each is tried, and the exit status is that of the first error.

  # lacuna umount /mnt/app /mnt/data

EXIT STATUS
  0  it is unmounted
  1  nothing is mounted there, or no instance runs, or another error
  2  wrong usage
  6  somebody uses it`
}

// Run is the verb.
func (c *umountCmd) Run(a *app) error {
	if err := given("umount", c.Dirs...); err != nil {
		return err
	}
	return a.askEach(c.Dirs, func(ctx context.Context, client *control.Client, path string) error {
		return client.Umount(ctx, control.UmountRequest{Dir: path, Lazy: c.Lazy})
	})
}
