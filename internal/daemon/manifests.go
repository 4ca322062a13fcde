package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon/fileset"
	"github.com/lacunafs/lacuna/internal/fetch"
	"github.com/lacunafs/lacuna/internal/manifest"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/concat"
	"github.com/lacunafs/lacuna/internal/source/trace"
)

// manifestFiles is what a mount of a manifest shows.
type manifestFiles struct {
	plan *fileset.Plan
	name string // of the manifest
	// found is what sources were asked at the mount, by the paths of files; anew
	// says that it was just now.
	found map[string]fileset.Found
	anew  bool
}

// fromManifest tells whether the record is of a mounted manifest.
func (rec *record) fromManifest() bool { return rec.Mount != nil && rec.Mount.Manifest != "" }

// mountManifest is Mount for a manifest. No source is asked, unless the manifest
// leaves out the size of a file.
func (i *Instance) mountManifest(ctx context.Context, rec record, q control.MountRequest) (reply control.MountReply, err error) {
	list, asked, err := readManifest(q.Manifest)
	if err != nil {
		return reply, err
	}
	for _, e := range list {
		if path.IsAbs(e.URL) {
			if err := i.refuseOwn(e.URL); err != nil {
				return reply, err
			}
		}
	}
	files := &manifestFiles{name: q.Manifest, anew: true}
	reply.Notes = notesOf(list)
	if files.plan, files.found, err = i.planFiles(ctx, list, asked); err != nil {
		if files.plan = i.lastPlan(asked, err); files.plan == nil {
			return reply, err
		}
		reply.Notes = append(reply.Notes, fmt.Sprintf("sizes are those of the last mount, because a source does not answer: %v", err))
	}
	rec.Plan = files.plan.Key
	if rec.Placeholder, err = needsDirectory(rec.Path); err != nil { // sources may have taken long to answer
		return reply, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.stopping {
		return reply, errStopping()
	}
	if err := i.mountLocked(ctx, &mountedImage{record: rec, files: files}); err != nil {
		return reply, fmt.Errorf("mount %s on %s: %w", q.Manifest, rec.Path, err)
	}
	reply.Digest, reply.Files, reply.Size = files.plan.Asked, files.plan.Files, files.plan.Size
	i.log.Info("mounted", "dir", rec.Path, "manifest", q.Manifest, "files", reply.Files, "devices", len(files.plan.Devices))
	return reply, nil
}

// readManifest also returns the digest of its text.
func readManifest(name string) (list []manifest.Entry, digest string, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, "", refuse(control.ExitUsage, "", "read the manifest %s: %v", name, bare(err))
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sum := sha256.New()
	var text strings.Builder
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, "", errors.Join(refuse(control.ExitUsage, "", "read the manifest %s: it is not a regular file", name), err)
	} else if st.Size() > manifest.MaxBytes {
		return nil, "", refuse(control.ExitUsage, "", "read the manifest %s: %d bytes, at most %d MiB are allowed", name, st.Size(), manifest.MaxBytes>>20)
	}
	if _, err := f.WriteTo(&text); err != nil {
		return nil, "", fmt.Errorf("read the manifest %s: %w", name, bare(err))
	}
	if list, err = manifest.Parse(strings.NewReader(text.String())); err != nil {
		return nil, "", refuse(control.ExitUsage, "`lacuna mount --help` shows what a manifest has", "read the manifest %s: %v", name, err)
	}
	sum.Write([]byte(text.String())) //nolint:errcheck // a hash takes everything
	return list, "sha256:" + hex.EncodeToString(sum.Sum(nil)), nil
}

// notesOf are what the user should know of the files.
func notesOf(list []manifest.Entry) (notes []string) {
	none, late := 0, 0
	for _, e := range list {
		switch {
		case e.SHA256 == "" && e.Size != 0:
			none++
		case e.Size > concat.MaxWhole:
			late++
		}
	}
	if none > 0 {
		note := fmt.Sprintf("%d of %d files have no sha256: their data cannot be verified", none, len(list))
		if none == 1 {
			note = fmt.Sprintf("1 file of %d has no sha256: its data cannot be verified", len(list))
		}
		notes = append(notes, note)
	}
	if late > 0 {
		notes = append(notes, fmt.Sprintf("%d of %d files are larger than %d MiB: they are verified once all of one is here, and may be read before", late, len(list), concat.MaxWhole>>20))
	}
	return notes
}

// lastPlan is the plan of the last mount of the manifest, where why is that its
// sources cannot be asked now.
func (i *Instance) lastPlan(asked string, why error) *fileset.Plan {
	if !errors.Is(why, source.ErrUnreachable) && !errors.Is(why, source.ErrBusy) {
		return nil
	}
	plan, err := i.manifests.Find(asked)
	if err != nil {
		i.report("looking for the last mount of a manifest", err)
	}
	return plan
}

// planFiles asks for the sizes that the manifest leaves out, and has everything
// made that the mount needs.
func (i *Instance) planFiles(ctx context.Context, list []manifest.Entry, asked string) (*fileset.Plan, map[string]fileset.Found, error) {
	found := make(map[string]fileset.Found)
	var mu sync.Mutex
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.SetLimit(i.s.Config.ConnsPerHost)
	for n := range list {
		e := &list[n]
		if e.Size != manifest.UnknownSize {
			continue
		}
		tasks.Go(func() error {
			var blob source.Blob
			err := i.patiently(ctx, "asking for the size of "+e.Path, func() (err error) {
				_, blob, err = i.sources.ask(ctx, e.URL)
				return err
			})
			if err != nil {
				return fmt.Errorf("entry %d (%q): ask for the size: %w", n+1, e.Path, err)
			}
			e.Size = blob.Size()
			mu.Lock()
			found[e.Path] = fileset.Found{Identity: source.IdentityOf(blob), Sequential: source.IsSequential(blob)}
			mu.Unlock()
			return blob.Close()
		})
	}
	if err := tasks.Wait(); err != nil {
		return nil, nil, err
	}
	plan, err := i.manifests.Prepare(list, asked, time.Now())
	if errors.Is(err, fileset.ErrTooLarge) {
		err = refuse(control.ExitUsage, "mount it in parts", "mount %d files: %v", len(list), err)
	}
	return plan, found, err
}

// filesOrigin describes where the bytes of a device of files come from: the object's
// name says which files, and any manifest may have them.
func filesOrigin(id ondemand.ObjectID) origin {
	return origin{Kind: originFiles, Name: "files " + id.Short()}
}

// serveFilesLocked has the front end stop reads of a manifest's devices. It goes on
// where one cannot be served.
func (i *Instance) serveFilesLocked(m *mountedImage, open openDevice) error {
	var errs []error
	for _, d := range m.files.plan.Devices {
		o := i.objects[d.Object]
		if o != nil {
			o.files++
		} else {
			var err error
			if o, err = i.serveFiles(m.files, d, open); err != nil {
				errs = append(errs, fmt.Errorf("files of %s: %w", d.Object.Short(), err))
				continue
			}
		}
		m.devices = append(m.devices, o)
	}
	return errors.Join(errs...)
}

func (i *Instance) serveFiles(files *manifestFiles, d fileset.Device, open openDevice) (*servedObject, error) {
	where := filesOrigin(d.Object)
	raw, err := json.Marshal(where)
	if err != nil {
		return nil, err
	}
	cached, err := open(cache.Meta{ID: d.Object, Size: d.Size, Source: raw})
	if err != nil {
		return nil, err
	}
	tally := trace.NewTally(func(r trace.Request) {
		i.log.Debug("asked a source of files", "object", d.Object.Short(), "request", r)
	})
	set, err := i.manifests.Open(d, cached, fileset.Options{
		Sources: fileset.Sources{
			Ask: func(ctx context.Context, name string) (source.Blob, error) {
				_, blob, err := i.sources.ask(ctx, name)
				return blob, err
			},
			Reopen: func(name string, id source.Identity, sequential bool) (source.Blob, error) {
				return i.sources.known(origin{Kind: kindOf(name), Name: name, Identity: id, Sequential: sequential})
			},
			Wrap: func(name string, blob source.Blob) source.Blob {
				return i.sources.wrapIn(tally, origin{Kind: kindOf(name), Name: name}, blob)
			},
		},
		Anew: files.anew, Found: files.found, Report: i.filesReport,
		Complete: func() {
			if err := i.front.Settle(d.Object); err != nil {
				i.report("letting reads through", err)
			}
		},
	})
	if err != nil {
		return nil, errors.Join(err, cached.Close())
	}
	i.parts.Store(d.Object, set.Blob())
	o, err := i.serveObjectLocked(cached, set.Object(), where, set.Blob())
	if err != nil {
		i.parts.Delete(d.Object)
		return nil, err
	}
	o.set, o.tally = set, tally
	return o, nil
}

// kindOf is the kind of the origin with that name.
func kindOf(name string) string {
	if path.IsAbs(name) {
		return originFile
	}
	return originHTTP
}

// remountFilesLocked goes on with a mount of a manifest that stands, and asks no source.
func (i *Instance) remountFilesLocked(rec record, leaving bool) error {
	plan, err := i.manifests.Load(rec.Plan)
	if err != nil {
		return err
	}
	m := &mountedImage{record: rec, files: &manifestFiles{plan: plan, name: rec.Mount.Manifest}, leaving: leaving}
	if err := i.serveFilesLocked(m, i.standing); err != nil {
		i.files[rec.key()] = &attachedFile{record: rec, broken: err, half: m}
		return err
	}
	i.mounts[rec.key()] = m
	return nil
}

// maxFailed is how many files status names that cannot be had.
const maxFailed = 20

// filesStatus is what status shows of a mounted manifest.
func (i *Instance) filesStatus(m *mountedImage) control.Mounted {
	out := control.Mounted{
		Dir: m.record.Path, Manifest: m.files.name, Digest: m.files.plan.Asked, Leaving: m.leaving, Files: m.files.plan.Files,
	}
	for n, o := range m.devices {
		d := &m.files.plan.Devices[n]
		digests, verified := o.set.Verified()
		front, _ := i.front.StatsOf(d.Object)
		asked := o.tally.Snapshot()
		out.Layers = append(out.Layers, control.MountedLayer{
			Format: "files", Object: string(d.Object), Size: d.Size, Present: o.cached.Present(),
			Verified: digests == len(d.Parts) && verified == digests,
			Hits:     front.Hits, Misses: front.Misses, Requests: uint64(asked.Requests), Fetched: asked.Bytes,
		})
		out.Unverifiable += len(d.Parts) - digests
		out.Unverified += digests - verified
		for _, f := range o.set.Failed() {
			if out.FailedFiles++; len(out.Failed) < maxFailed {
				where := origin{Kind: kindOf(f.Part.URL), Name: f.Part.URL}
				out.Failed = append(out.Failed, control.FailedFile{Path: f.Part.Path, Source: where.redacted(), Error: f.Err.Error()})
			}
		}
	}
	return out
}

// filesReport is told what goes wrong with files of a manifest and no reader is told.
func (i *Instance) filesReport(what string, err error) {
	if errors.Is(err, concat.ErrDigest) {
		i.forgetRead()
	}
	i.report(what, err)
}

// forgetRead has what was read before it was known to be wrong not be read again. Its
// range is missing, or denied, by now.
func (i *Instance) forgetRead() {
	if err := dropPageCache(); err != nil {
		i.report("forgetting wrong data", err)
	}
}

// fetchFailed is told errors of fetching that no reader gets, or gets as an errno only.
func (i *Instance) fetchFailed(id ondemand.ObjectID, err error) {
	if errors.Is(err, fetch.ErrDigest) || errors.Is(err, cache.ErrLost) {
		i.forgetRead()
	}
	var part *concat.PartError
	if errors.As(err, &part) { // status shows it with its file
		i.log.Warn("fetching", "object", id.Short(), "file", part.Name, "err", err)
		return
	}
	i.report("fetching "+i.nameOf(id), err)
}
