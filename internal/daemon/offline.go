package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon/fileset"
	"github.com/lacunafs/lacuna/internal/daemon/prepare"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/toc"
)

// ObjectsAt are the objects of what is attached or mounted at path by an instance
// with this cache root; false where nothing is.
func ObjectsAt(root, path string) (ids []ondemand.ObjectID, found bool, err error) {
	path, err = canonical("find", path)
	if err != nil {
		return nil, false, nil //nolint:nilerr // then it is no path, and may be a key
	}
	rec, err := readRecord(records{filepath.Join(root, "served")}.name(path))
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && rec.Kind != kindAttach && rec.Kind != kindMount:
		return nil, false, nil
	case err != nil:
		return nil, false, fmt.Errorf("find the objects of %s: %w", path, err)
	case rec.fromManifest():
		ids, err = filesIn(root, rec.Plan)
	default:
		ids, err = shownIn(root, rec)
	}
	if err != nil {
		return nil, false, fmt.Errorf("find the objects of %s: %w", path, err)
	}
	return ids, true, nil
}

// filesIn is the objects of a mounted manifest.
func filesIn(root, key string) (ids []ondemand.ObjectID, err error) {
	library, err := fileset.Open(root)
	if err != nil {
		return nil, err
	}
	plan, err := library.Load(key)
	if err != nil {
		return nil, err
	}
	for _, d := range plan.Devices {
		ids = append(ids, d.Object)
	}
	return ids, nil
}

// NamesOf tells, for people, which objects are of what is attached or mounted by an
// instance with this cache root. With an error it has those that can be told.
func NamesOf(root string) (map[ondemand.ObjectID]string, error) {
	names := make(map[ondemand.ObjectID]string)
	add := func(id ondemand.ObjectID, name string) {
		if names[id] != "" {
			name = names[id] + ", " + name
		}
		names[id] = name
	}
	recs, err := records{filepath.Join(root, "served")}.list()
	errs := []error{err}
	for _, rec := range recs {
		switch {
		case rec.Kind == kindAttach:
			add(ondemand.ObjectID(rec.Object), rec.Path)
		case rec.fromManifest():
			ids, err := filesIn(root, rec.Plan)
			errs = append(errs, err)
			for _, id := range ids {
				add(id, "files of "+rec.Mount.Manifest+" on "+rec.Path)
			}
		case rec.Kind == kindMount:
			plan, err := planIn(root, rec)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			for _, n := range plan.Devices {
				add(plan.Layers[n].Device, fmt.Sprintf("%s of %s on %s", nameOfLayer(&plan.Image, n), plan.Image.Ref, rec.Path))
			}
		}
	}
	return names, errors.Join(errs...)
}

// planIn is the plan of a mounted image.
func planIn(root string, rec record) (*prepare.Plan, error) {
	library, err := prepare.Open(root)
	if err != nil {
		return nil, err
	}
	return library.Load(rec.Plan)
}

// RedactSource is an object's description of its source without what is secret
// in it.
func RedactSource(raw json.RawMessage) json.RawMessage {
	var o origin
	if json.Unmarshal(raw, &o) != nil {
		return nil
	}
	o.Name = o.redacted()
	clean, err := json.Marshal(o)
	if err != nil {
		return nil
	}
	return clean
}

// SourceName is the name of the source in an object's description, without what
// is secret in it; empty where there is none.
func SourceName(raw json.RawMessage) string {
	var o origin
	if json.Unmarshal(raw, &o) != nil {
		return ""
	}
	return o.redacted()
}

// SourceOf opens the source that an object's description names, bound to the
// bytes that it had. The caller closes the blob, then calls done.
func SourceOf(s Settings, raw json.RawMessage) (blob source.Blob, done func() error, err error) {
	var where origin
	if err := json.Unmarshal(raw, &where); err != nil {
		return nil, nil, fmt.Errorf("read the description of the source: %w", err)
	}
	sources := newOpener(s, slog.New(slog.DiscardHandler))
	blob, err = sources.reopen(where)
	if err != nil {
		return nil, nil, err
	}
	if source.IsSequential(blob) {
		blob = fromStart{blob}
	}
	return blob, sources.Close, nil
}

// PartsOf is what the cache root knows of the bytes of an object by itself: nil
// where it is not of a layer or of files. meta is the object's.
func PartsOf(root string, meta cache.Meta) (*[]cache.Part, error) {
	var where origin
	if err := json.Unmarshal(meta.Source, &where); err != nil {
		return nil, fmt.Errorf("read the description of the source: %w", err)
	}
	var parts []cache.Part
	var err error
	from := "image"
	switch where.Kind {
	case originLayer:
		parts, err = prepare.Parts(root, meta.ID, meta.Size)
	case originFiles:
		from = "manifest"
		parts, err = fileset.Parts(root, meta.ID)
	default:
		return nil, nil
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, toc.ErrInvalid) || errors.Is(err, prepare.ErrDamaged) {
		return nil, refuse(control.ExitError, "it is made anew when its "+from+" is mounted", "verify %s: %v", where.Name, err)
	}
	return &parts, err
}

// fromStart reads a range of a blob that can be read from its start only.
type fromStart struct{ source.Blob }

// ReadRange reads on from the start and drops what comes before off.
func (b fromStart) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	r, err := b.Blob.ReadRange(ctx, 0, off+n)
	if err != nil || off == 0 {
		return r, err
	}
	if _, err := io.CopyN(io.Discard, r, off); err != nil {
		return nil, fmt.Errorf("read on to %d: %w (%w)", off, err, r.Close())
	}
	return r, nil
}
