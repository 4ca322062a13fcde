package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/fetch"
	"github.com/lacunafs/lacuna/internal/mount"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
)

// refuse is an error of the command line's user.
func refuse(exit control.Exit, hint, format string, args ...any) error {
	return &control.Error{Message: fmt.Sprintf(format, args...), Hint: hint, Exit: exit}
}

// errStopping answers commands that come while the instance stops.
func errStopping() error {
	return refuse(control.ExitError, "`lacuna stop --wait` returns once it has ended: start it again then; `lacuna status` tells whom it waits for", "the instance is stopping")
}

var hexDigest = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Attach makes a source appear as a file: at its return reads of the file are
// filled. When it fails nothing is left behind.
func (i *Instance) Attach(ctx context.Context, q control.AttachRequest) (control.AttachReply, error) {
	var reply control.AttachReply
	q.SHA256 = strings.TrimPrefix(strings.ToLower(q.SHA256), "sha256:")
	if q.SHA256 != "" && !hexDigest.MatchString(q.SHA256) {
		return reply, refuse(control.ExitUsage, "sha256sum prints one", "attach %s: %q is not a SHA-256 digest of 64 hexadecimal digits", q.File, q.SHA256)
	}
	path, err := i.claim(q.File)
	if err != nil {
		return reply, err
	}
	rec := record{Kind: kindAttach, Path: path}
	// A place that will not do is told before the source is asked.
	if _, err := needsPlaceholder(path); err != nil {
		i.unclaim(path)
		return reply, err
	}
	if err := i.refuseOwn(q.Source); err != nil {
		i.unclaim(path)
		return reply, err
	}
	where, blob, err := i.sources.open(ctx, q.Source)
	if err != nil {
		i.unclaim(path)
		return reply, err
	}
	reply.Size = where.Identity.Size
	if rec.Placeholder, err = needsPlaceholder(path); err != nil {
		i.unclaim(path)
		return reply, errors.Join(err, blob.Close())
	}
	id, err := where.id(q.SHA256)
	if err == nil {
		err = refuseTooLarge(where)
	}
	if err != nil {
		i.unclaim(path)
		return reply, errors.Join(err, blob.Close())
	}
	rec.Object, rec.Size, rec.Forget = string(id), where.Identity.Size, where.Once != "" && q.SHA256 == ""
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.stopping {
		delete(i.files, path)
		return reply, errors.Join(errStopping(), blob.Close())
	}
	if err := i.attachLocked(rec, where, blob, q.SHA256); err != nil {
		delete(i.files, path)
		return reply, fmt.Errorf("attach %s: %w", path, err)
	}
	reply.Object, reply.Notes = string(id), where.notes(q.SHA256)
	i.log.Info("attached", "file", path, "source", where.redacted(), "size", reply.Size, "object", id.Short())
	return reply, nil
}

// notes are what the user should know of the source.
func (o origin) notes(sha string) (notes []string) {
	if o.Sequential {
		notes = append(notes, "the server does not serve ranges: the file is downloaded once, in order, and a read waits until the download gets there")
	}
	if o.Once != "" && sha == "" {
		notes = append(notes, "the server sends neither ETag nor Last-Modified: the data is not kept after detach, because it could not be recognised again")
	}
	return notes
}

// claim checks the place and reserves it, so that two commands do not meet there.
func (i *Instance) claim(file string) (string, error) {
	path, err := canonical("attach", file)
	if err != nil {
		return "", err
	}
	if rel, err := filepath.Rel(i.root.Dir(), path); err == nil && !strings.HasPrefix(rel, "..") {
		return "", refuse(control.ExitUsage, "choose a place outside of it", "attach %s: it lies in the cache root %s", file, i.root.Dir())
	}
	return path, i.named(i.reserve("attach", path, func() { i.files[path] = &attachedFile{} }))
}

// refuseOwn refuses a source that this instance serves itself: its own reads are
// let through to the holes.
func (i *Instance) refuseOwn(name string) error {
	st, err := os.Stat(name)
	if err != nil {
		return nil // a URL, or open says what is wrong
	}
	inode, err := inodeOf(st, nil)
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	own := strings.HasPrefix(name, i.root.Dir()+"/")
	for _, f := range i.files {
		own = own || f.record.Device == inode.Dev
	}
	for _, m := range i.mounts {
		own = own || m.record.Device == inode.Dev
	}
	for dir, b := range i.bound {
		for _, o := range b.dir.Objects() {
			served, err := os.Stat(filepath.Join(dir, o.Leaf()))
			own = own || err == nil && os.SameFile(st, served)
		}
	}
	if own {
		return refuse(control.ExitUsage, "attach the source that it comes from", "open %s: this instance serves it", name)
	}
	return nil
}

func (i *Instance) unclaim(path string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.files, path)
}

// canonical is the path with the links of its directory resolved; the file
// itself need not exist. verb is for the message.
func canonical(verb, path string) (string, error) {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) && slices.Contains([]string{"umount", "detach", "hydrate"}, verb) {
		return path, nil // nothing is served there, which is told with the same words as of any other path
	}
	if err != nil {
		return "", refuse(control.ExitUsage, "make the directory first", "%s %s: directory %s: %v", verb, path, filepath.Dir(path), bare(err))
	}
	return filepath.Join(dir, filepath.Base(path)), nil
}

// bare is err without the path that it names.
func bare(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// needsPlaceholder tells whether the file is absent; what is there must be an
// empty regular file that nothing is mounted on.
func needsPlaceholder(path string) (bool, error) {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("attach %s: %w", path, bare(err))
	}
	mounts, err := mount.List()
	if err != nil {
		return false, err
	}
	if _, mounted := mount.At(mounts, path); mounted {
		return false, refuse(control.ExitInUse, "another instance may have attached it: `lacuna --root DIR detach` or umount it", "attach %s: something is mounted there", path)
	}
	if !st.Mode().IsRegular() {
		return false, refuse(control.ExitUsage, "choose another name", "attach %s: it is not a regular file", path)
	}
	if st.Size() > 0 {
		return false, refuse(control.ExitUsage, "move it away or choose another name: only an absent or empty file is covered", "attach %s: the file is not empty", path)
	}
	return false, nil
}

// attachLocked does the local part. It owns blob, and undoes what it has done
// when it fails.
func (i *Instance) attachLocked(rec record, where origin, blob source.Blob, sha string) (err error) {
	var undo []func() error
	defer func() {
		if err == nil {
			return
		}
		for n := len(undo) - 1; n >= 0; n-- {
			err = errors.Join(err, undo[n]())
		}
	}()
	object, err := i.acquireLocked(ondemand.ObjectID(rec.Object), where, blob, sha)
	if err != nil {
		return err
	}
	undo = append(undo, func() error { return i.releaseLocked(object, rec.Forget || object.cached.Present() == 0) })
	shown, err := i.makeFilesystem(&rec, object)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, shown.Close()) }()
	if err := i.records.put(rec); err != nil {
		return err
	}
	undo = append(undo, func() error { return i.records.remove(rec.Path) })
	if rec.Placeholder {
		if err := makePlaceholder(rec.Path); err != nil {
			return fmt.Errorf("make an empty file there: %w", bare(err))
		}
		undo = append(undo, func() error { return os.Remove(rec.Path) })
	}
	if err := i.showFile(shown, rec.Path); err != nil {
		return err
	}
	i.files[rec.Path] = &attachedFile{record: rec, object: object}
	return nil
}

// makeFilesystem makes the filesystem that shows the object as a file, and notes
// in rec what it is known by.
func (i *Instance) makeFilesystem(rec *record, object *servedObject) (*mount.Filesystem, error) {
	name, err := i.fileImage(object.cached, object.origin)
	if err != nil {
		return nil, err
	}
	// What is complete is read as fast as a plain file so, and is in memory once.
	e := erofsOf(name, object.served.Complete())
	if object.cached.Size() > 0 {
		e.Devices = []string{object.cached.DataPath()}
	}
	made, err := e.Make()
	if err != nil {
		return nil, err
	}
	rec.Superblock, rec.Device = made.Superblock, made.Device
	return made, nil
}

func makePlaceholder(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
	if err != nil {
		return err
	}
	return f.Close()
}

// acquireLocked finds or makes the object and has it served. It owns blob.
func (i *Instance) acquireLocked(id ondemand.ObjectID, where origin, blob source.Blob, sha string) (*servedObject, error) {
	if o := i.objects[id]; o != nil {
		o.files++
		return o, blob.Close() // the object has one of its own
	}
	raw, err := json.Marshal(where)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("describe the source: %w", err), blob.Close())
	}
	cached, err := i.root.Create(cache.Meta{ID: id, Size: where.Identity.Size, Source: raw, SHA256: sha})
	if err != nil {
		return nil, errors.Join(err, blob.Close())
	}
	if r := cached.Recovered(); !r.Clean() {
		i.note(fmt.Sprintf("object %s was repaired when it was opened: %+v", id.Short(), r))
		i.log.Warn("object was repaired", "object", id.Short(), "recovery", fmt.Sprintf("%+v", r))
	}
	return i.serveLocked(cached, where, blob)
}

// serveLocked has the front end stop reads of the object. It owns cached and blob.
func (i *Instance) serveLocked(cached *cache.Object, where origin, blob source.Blob) (*servedObject, error) {
	return i.serveObjectLocked(cached, fetch.Cached(cached), where, blob)
}

// serveObjectLocked is serveLocked with the object as the fetcher is to take it.
func (i *Instance) serveObjectLocked(cached *cache.Object, as fetch.CacheObject, where origin, blob source.Blob) (*servedObject, error) {
	id := cached.ID()
	i.origins.Store(id, where)
	served, err := i.fetcher.Add(as, blob)
	if err != nil {
		i.origins.Delete(id)
		return nil, errors.Join(err, blob.Close(), cached.Close())
	}
	if err := i.front.Attach(served, cached.DataPath(), nil); err != nil {
		i.fetcher.Remove(id)
		i.origins.Delete(id)
		return nil, errors.Join(err, blob.Close(), cached.Close())
	}
	o := &servedObject{cached: cached, served: served, blob: blob, asked: blob, origin: where, files: 1}
	i.objects[id] = o
	return o, nil
}

// releaseLocked takes back one acquireLocked; the last one ends the serving.
// forget: the object's data is of no use afterwards.
func (i *Instance) releaseLocked(o *servedObject, forget bool) error {
	if o.files--; o.files > 0 {
		return nil
	}
	id := o.cached.ID()
	if o.settling != nil {
		o.settling()
	}
	delete(i.objects, id)
	detach := i.front.Detach
	if i.shownByOthers("")[id] {
		detach = i.front.Deny // something broken shows it: without the mark its holes read as zeros
	}
	err := detach(id)
	i.fetcher.Remove(id)
	i.origins.Delete(id)
	i.parts.Delete(id)
	err = errors.Join(err, o.blob.Close(), o.cached.Close())
	if forget {
		err = errors.Join(err, i.removeObject(id))
	}
	return err
}
