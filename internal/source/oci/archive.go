package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacunafs/lacuna/internal/source"
)

// archive is an image in a file of docker save. Its layers are read where they
// lie in the file.
type archive struct {
	path   string
	opts   Options
	id     source.Identity // of the file when it was opened
	layers []place         // as Image.Layers
	life   context.Context // ends at close
	end    context.CancelFunc
}

// place is where a member of the archive has its bytes.
type place struct{ off, size int64 }

// entry is one image of manifest.json.
type entry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func openArchive(ctx context.Context, ref reference, opts Options) (*Image, error) {
	if opts.OpenFile == nil {
		return nil, errNoOpenFile
	}
	file, err := opts.OpenFile(ctx, ref.path)
	if err != nil {
		return nil, err
	}
	img, err := readArchive(ctx, file, ref, opts)
	return img, errors.Join(err, file.Close())
}

func readArchive(ctx context.Context, file source.Blob, ref reference, opts Options) (*Image, error) {
	members, err := scan(ctx, file)
	if err != nil {
		return nil, err
	}
	e, err := chosen(ctx, file, members, ref.tag)
	if err != nil {
		return nil, err
	}
	config, err := member(ctx, file, members, e.Config)
	if err != nil {
		return nil, err
	}
	id := digest.FromBytes(config)
	if name := strings.TrimSuffix(path.Base(e.Config), ".json"); digest.NewDigestFromEncoded(digest.SHA256, name).Validate() == nil && name != id.Encoded() {
		return nil, &wrongBytes{"the configuration is not the one that its name says"}
	}
	a := &archive{path: ref.path, opts: opts, id: source.IdentityOf(file)}
	doc := document{Config: &v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: id}}
	var c v1.Image
	if json.Unmarshal(config, &c) != nil || len(c.RootFS.DiffIDs) != len(e.Layers) {
		return nil, fmt.Errorf("%w: manifest.json has %d layers, the configuration %d", ErrUnsupported, len(e.Layers), len(c.RootFS.DiffIDs))
	}
	for i, name := range e.Layers {
		name = path.Clean(name)
		where, ok := members[name]
		if !ok {
			return nil, fmt.Errorf("%w: layer %s is not in the archive", source.ErrNotFound, name)
		}
		d, err := describe(ctx, file, where, name, c.RootFS.DiffIDs[i])
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", name, err)
		}
		a.layers = append(a.layers, where)
		doc.Layers = append(doc.Layers, d)
	}
	layers, p, err := layersOf(doc, config)
	if err != nil {
		return nil, err
	}
	if asked, err := parsePlatform(opts.Platform); err != nil || opts.Platform != "" && p.os != "" && asked.runs(p) == 0 {
		return nil, errors.Join(err, fmt.Errorf("%w for %s; there is %s", ErrNoPlatform, asked, p))
	}
	a.life, a.end = context.WithCancel(context.Background())
	img := &Image{Ref: ref.String(), Digest: id, Platform: p.String(), Config: config, Layers: layers, blobs: a, place: ref.place()}
	img.adopt()
	return img, nil
}

// describe finds out what docker save does not say: whether the layer is
// compressed, and what its digest is.
func describe(ctx context.Context, file source.Blob, where place, name string, diffID digest.Digest) (v1.Descriptor, error) {
	d := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Size: where.size, Digest: diffID}
	head, err := readAt(ctx, file, where.off, min(where.size, 4))
	switch {
	case err != nil:
		return d, err
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		d.MediaType = v1.MediaTypeImageLayerGzip
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d.MediaType = v1.MediaTypeImageLayerZstd
	default:
		return d, nil
	}
	r, err := file.ReadRange(ctx, where.off, where.size)
	if err != nil {
		return d, err
	}
	d.Digest, err = digest.FromReader(r)
	return d, errors.Join(err, r.Close())
}

// chosen returns the image of manifest.json that has the tag; without a tag, the only one.
func chosen(ctx context.Context, file source.Blob, members map[string]place, tag string) (entry, error) {
	data, err := member(ctx, file, members, "manifest.json")
	if err != nil {
		return entry{}, err
	}
	var all []entry
	if err := json.Unmarshal(data, &all); err != nil {
		return entry{}, fmt.Errorf("%w: manifest.json is not what docker save writes", ErrUnsupported)
	}
	var tags []string
	for _, e := range all {
		if slices.Contains(e.RepoTags, tag) || slices.Contains(e.RepoTags, tag+":latest") {
			return e, nil
		}
		tags = append(tags, e.RepoTags...)
	}
	switch {
	case tag != "":
		return entry{}, fmt.Errorf("%w: no tag %q in the archive; there are: %s", source.ErrNotFound, tag, strings.Join(tags, ", "))
	case len(all) == 1:
		return all[0], nil
	}
	return entry{}, fmt.Errorf("%w: the archive has %d images; tags are: %s", ErrSeveral, len(all), strings.Join(tags, ", "))
}

func member(ctx context.Context, file source.Blob, members map[string]place, name string) ([]byte, error) {
	where, ok := members[name]
	switch {
	case !ok:
		return nil, fmt.Errorf("%w: no %s in the archive", source.ErrNotFound, name)
	case where.size > jsonLimit:
		return nil, fmt.Errorf("%w: %s has %d bytes", ErrUnsupported, name, where.size)
	}
	return readAt(ctx, file, where.off, where.size)
}

// maxMembers bounds what an archive may make us remember.
const maxMembers = 100_000

// scan reads the headers of a tar. Links (docker and podman write equal layers
// once) are members with the bytes of their target.
func scan(ctx context.Context, file source.Blob) (map[string]place, error) {
	members, links := map[string]place{}, map[string]string{}
	r := &seeker{ctx: ctx, blob: file}
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("%w: no tar archive: %w", ErrUnsupported, err)
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			members[name] = place{r.off, h.Size}
			if h.Size > file.Size()-r.off {
				return nil, fmt.Errorf("%w: %s ends behind the archive", source.ErrNotBytes, name)
			}
		case tar.TypeSymlink:
			links[name] = path.Join(path.Dir(name), h.Linkname)
		case tar.TypeLink:
			links[name] = path.Clean(h.Linkname)
		case tar.TypeGNUSparse:
			return nil, fmt.Errorf("%w: %s is a sparse member", ErrUnsupported, name)
		}
		if len(members)+len(links) > maxMembers {
			return nil, fmt.Errorf("%w: an archive of more than %d members", ErrUnsupported, maxMembers)
		}
	}
	for name, target := range links {
		if where, ok := members[target]; ok {
			members[name] = where
		}
	}
	return members, nil
}

// seeker makes a tar.Reader go from header to header without reading what lies between.
type seeker struct {
	ctx  context.Context
	blob source.Blob
	off  int64
}

func (s *seeker) Read(p []byte) (int, error) {
	n := min(int64(len(p)), s.blob.Size()-s.off)
	if n <= 0 {
		return 0, io.EOF
	}
	data, err := readAt(s.ctx, s.blob, s.off, n)
	if err != nil {
		return 0, err
	}
	s.off += n
	return copy(p, data), nil
}

func (s *seeker) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += s.off
	case io.SeekEnd:
		off += s.blob.Size()
	}
	if off < 0 {
		return 0, fmt.Errorf("seek to %d: %w", off, source.ErrRange)
	}
	s.off = off
	return off, nil
}

func (a *archive) close() error {
	a.end()
	return nil
}

func (a *archive) blob(ctx context.Context, l Layer) (source.Blob, error) {
	if a.life.Err() != nil {
		return nil, os.ErrClosed
	}
	i := slices.IndexFunc(l.image.Layers, func(k Layer) bool { return k.Digest == l.Digest })
	if i < 0 {
		return nil, fmt.Errorf("%w: no such layer", source.ErrNotFound)
	}
	file, err := a.opts.OpenFile(ctx, a.path)
	if err != nil {
		return nil, err
	}
	if source.IdentityOf(file) != a.id {
		return nil, errors.Join(source.ErrChanged, file.Close())
	}
	return &section{Blob: file, place: archivePrefix + a.path, life: a.life, off: a.layers[i].off, size: l.Size, digest: l.Digest}, nil
}
