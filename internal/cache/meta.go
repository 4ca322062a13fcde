package cache

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// metaVersion is the version of object.json that this package writes.
const metaVersion = 1

// maxSize is the largest object, in bytes: offsets of its blocks and of its
// presence pages are far from overflowing.
const maxSize = 1 << 60

// maxMeta is the largest object.json that is read.
const maxMeta = 1 << 20

// Meta describes an object. It is the content of object.json.
type Meta struct {
	// Version is of the format; Create sets it.
	Version int `json:"version"`
	// ID names the object: 64 lower-case hexadecimal digits.
	ID ondemand.ObjectID `json:"id"`
	// Size in bytes; it never changes.
	Size int64 `json:"size"`
	// Source is the daemon's description of where the bytes come from; any
	// JSON value, opaque here.
	Source json.RawMessage `json:"source,omitempty"`
	// SHA256 is the digest that the whole must have, in hexadecimal, or
	// empty where none is known.
	SHA256 string `json:"sha256,omitempty"`
	// Verified: the object was complete and had that digest.
	Verified bool `json:"verified,omitempty"`
}

func (m Meta) check() error {
	if _, err := parseKey(m.ID); err != nil {
		return err
	}
	if m.Size < 0 || m.Size > maxSize {
		return fmt.Errorf("size %d: %w", m.Size, ErrBadMeta)
	}
	if m.SHA256 != "" {
		if _, err := parseKey(ondemand.ObjectID(m.SHA256)); err != nil {
			return fmt.Errorf("sha256 %q: %w", m.SHA256, ErrBadMeta)
		}
	}
	if len(m.Source) > 0 && !json.Valid(m.Source) {
		return fmt.Errorf("source is not JSON: %w", ErrBadMeta)
	}
	return nil
}

// update is m as it becomes when an object that exists as m is asked for as
// asked. ErrMismatch where they are not one object: another size, another
// digest, or, with no digest that the whole must have at last, another source.
func (m Meta) update(asked Meta) (Meta, error) {
	sameDigest := m.SHA256 != "" && m.SHA256 == asked.SHA256
	switch {
	case m.Size != asked.Size:
		return m, fmt.Errorf("it has %d bytes, not %d: %w", m.Size, asked.Size, ErrMismatch)
	case m.SHA256 != "" && asked.SHA256 != "" && !sameDigest:
		return m, fmt.Errorf("its digest is sha256:%s, not sha256:%s: %w", m.SHA256, asked.SHA256, ErrMismatch)
	case !sameDigest && !sameJSON(m.Source, asked.Source):
		return m, fmt.Errorf("its source is another one: %w", ErrMismatch)
	}
	if asked.SHA256 != "" {
		m.SHA256 = asked.SHA256
	}
	if !sameJSON(m.Source, asked.Source) {
		m.Source = asked.Source
	}
	return m, nil
}

func sameJSON(a, b json.RawMessage) bool { return bytes.Equal(compact(a), compact(b)) }

func compact(raw json.RawMessage) []byte {
	if len(raw) == 0 {
		return nil
	}
	var out bytes.Buffer
	if err := json.Compact(&out, raw); err != nil {
		return raw
	}
	return out.Bytes()
}

func (m Meta) encode() ([]byte, error) {
	m.Version = metaVersion
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode description: %w", err)
	}
	return append(b, '\n'), nil
}

// parseMeta reads object.json strictly: one value, no unknown names.
func parseMeta(b []byte) (Meta, error) {
	var version struct{ Version *uint64 }
	if err := json.Unmarshal(b, &version); err != nil {
		return Meta{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if version.Version == nil {
		return Meta{}, fmt.Errorf("%w: no version", ErrCorrupt)
	}
	if v := *version.Version; v > metaVersion {
		return Meta{}, &VersionError{Version: v, Known: metaVersion}
	} else if v != metaVersion {
		return Meta{}, fmt.Errorf("%w: unknown version %d", ErrCorrupt, v)
	}
	var m Meta
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return Meta{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if err := m.check(); err != nil {
		return Meta{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	m.Source = compact(m.Source) // the file is indented
	return m, nil
}

func readMeta(d disk, dir string, id ondemand.ObjectID) (m Meta, err error) {
	name := path.Join(dir, metaName)
	f, err := d.Open(name)
	if err != nil {
		return Meta{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxMeta))
	if err != nil {
		return Meta{}, fmt.Errorf("read %s: %w", name, err)
	}
	m, err = parseMeta(b)
	var newer *VersionError
	if errors.As(err, &newer) {
		newer.Path = name
		return Meta{}, newer
	}
	if err != nil {
		return Meta{}, fmt.Errorf("read %s: %w", name, err)
	}
	if m.ID != id {
		return Meta{}, fmt.Errorf("read %s: it describes object %s: %w", name, m.ID, ErrCorrupt)
	}
	return m, nil
}

// writeFile makes a file of this content; durable ones, but for their name, before
// it returns.
func writeFile(d disk, name string, b []byte, durable bool) (err error) {
	f, err := d.Create(name, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := writeAll(f, b, 0); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if durable {
		if err := f.Datasync(); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

// writeAll is WriteAt with a short write as an error.
func writeAll(f file, b []byte, off int64) error {
	n, err := f.WriteAt(b, off)
	if err == nil && n != len(b) {
		err = io.ErrShortWrite
	}
	return err
}

// replaceMeta changes object.json: afterwards it is the old or the new, whole.
func replaceMeta(d disk, dir string, m Meta) error {
	b, err := m.encode()
	if err != nil {
		return err
	}
	name := path.Join(dir, metaName)
	if err := writeFile(d, name+newSuffix, b, true); err != nil {
		return err
	}
	if err := d.Rename(name+newSuffix, name); err != nil {
		return err
	}
	return d.SyncDir(dir)
}
