// Command client does for the tests what surrounds SOCI's tool on a machine that has
// it: containerd's client brings images and takes them away, and SOCI's snapshotter
// mounts their layers.
//
//	client fetch SOCKET REF                  bring an image with all that its index has
//	client push SOCKET REF                   put it, and what it names, into its registry
//	client register ROOT INDEX MANIFEST      tell SOCI's database of a v2 index that the
//	                                         snapshotter has fetched, and of which image
//	                                         it is
//	client mount ROOT REF MANIFEST v1|v2 DIR LAYER...
//	                                         mount the layers on DIR/0, DIR/1 and so on by
//	                                         the index that SOCI finds, until stdin ends
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/awslabs/soci-snapshotter/soci"
	"github.com/awslabs/soci-snapshotter/soci/store"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ctx := namespaces.WithNamespace(context.Background(), namespaces.Default)
	switch {
	case len(args) == 3 && args[0] == "fetch":
		return withClient(args[1], func(c *containerd.Client) error {
			_, err := c.Fetch(ctx, args[2], containerd.WithResolver(registries()))
			return err
		})
	case len(args) == 3 && args[0] == "push":
		return withClient(args[1], func(c *containerd.Client) error {
			img, err := c.ImageService().Get(ctx, args[2])
			if err != nil {
				return err
			}
			return c.Push(ctx, args[2], img.Target, containerd.WithResolver(registries()))
		})
	case len(args) == 4 && args[0] == "register":
		return register(ctx, args[1], args[2], args[3])
	case len(args) > 6 && args[0] == "mount":
		return mount(ctx, args[1], image{args[2], args[3]}, args[4], args[5], args[6:])
	}
	return errors.New("see the source for usage")
}

func registries() remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{
		Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost)),
	})
}

func withClient(socket string, do func(*containerd.Client) error) error {
	c, err := containerd.New(socket)
	if err != nil {
		return err
	}
	return errors.Join(do(c), c.Close())
}

// register does what soci rebuild-db does of v1 indices: it passes over those of v2.
func register(ctx context.Context, root, index, manifest string) error {
	contents, err := store.NewContentStore(store.WithType(store.SociContentStoreType), store.WithSnapshotterRoot(root))
	if err != nil {
		return err
	}
	r, err := contents.Fetch(ctx, ocispec.Descriptor{Digest: digest.Digest(index)})
	if err != nil {
		return err
	}
	defer r.Close()
	var x soci.Index
	if err := soci.DecodeIndex(r, &x); err != nil {
		return err
	}
	db, err := soci.NewDB(soci.ArtifactsDbPath(root))
	if err != nil {
		return err
	}
	err = db.WriteArtifactEntry(&soci.ArtifactEntry{
		Digest: index, OriginalDigest: manifest, ImageDigest: manifest, Location: manifest, Type: soci.ArtifactEntryTypeIndex,
		MediaType: x.MediaType, ArtifactType: x.Config.MediaType, CreatedAt: time.Now(),
	})
	for _, z := range x.Blobs {
		layer := z.Annotations[soci.IndexAnnotationImageLayerDigest]
		err = errors.Join(err, db.WriteArtifactEntry(&soci.ArtifactEntry{
			Digest: z.Digest.String(), Size: z.Size, OriginalDigest: layer, Location: layer,
			Type: soci.ArtifactEntryTypeLayer, MediaType: soci.SociLayerMediaType, CreatedAt: time.Now(),
		}))
	}
	return err
}
