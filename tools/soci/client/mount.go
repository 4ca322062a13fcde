package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/awslabs/soci-snapshotter/config"
	"github.com/awslabs/soci-snapshotter/fs"
	"github.com/awslabs/soci-snapshotter/fs/source"
	"github.com/awslabs/soci-snapshotter/metadata"
	"github.com/awslabs/soci-snapshotter/service/resolver"
	"github.com/awslabs/soci-snapshotter/snapshot"
	"github.com/awslabs/soci-snapshotter/ztoc"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/log"
	bolt "go.etcd.io/bbolt"
)

// image is an image as a registry has it.
type image struct{ ref, manifest string }

// mount mounts layers as SOCI's snapshotter does when containerd asks it for them.
// Which index is theirs it is not told: SOCI asks the registry.
func mount(ctx context.Context, root string, img image, version, dir string, layers []string) (err error) {
	if err := log.SetLevel("warn"); err != nil {
		return err
	}
	lazy, done, err := filesystem(ctx, root, version)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	for n, layer := range layers {
		at := filepath.Join(dir, strconv.Itoa(n))
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		if err := lazy.Mount(ctx, at, map[string]string{
			snapshotters.TargetRefLabel: img.ref, snapshotters.TargetManifestDigestLabel: img.manifest,
			snapshotters.TargetLayerDigestLabel: layer,
		}); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, lazy.Unmount(ctx, at)) }()
	}
	fmt.Println("mounted")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// filesystem is SOCI's, put together as its daemon does it (soci-snapshotter-grpc,
// service.NewSociSnapshotterService), with everything that it fetches below root.
func filesystem(ctx context.Context, root, version string) (lazy snapshot.FileSystem, done func() error, err error) {
	c := config.NewConfig()
	c.ContentStoreConfig.Type = config.SociContentStoreType
	c.BackgroundFetchConfig.Disable = true // what is not read stays unread
	c.FSConfig.NoPrometheus = true
	c.PullModes.SOCIv1.Enable, c.PullModes.SOCIv2.Enable = version == "v1", version == "v2"
	at := filepath.Join(root, "soci")
	if err := os.MkdirAll(at, 0o700); err != nil {
		return nil, nil, err
	}
	db, err := bolt.Open(filepath.Join(root, "metadata.db"), 0o600, nil)
	if err != nil {
		return nil, nil, err
	}
	hosts := resolver.NewRegistryManager(ctx, c.RetryableHTTPClientConfig, c.ResolverConfig, nil).AsRegistryHosts()
	lazy, err = fs.NewFilesystem(ctx, at, c.FSConfig,
		fs.WithPullModes(c.PullModes), fs.WithResolverConfig(c.ResolverConfig), fs.WithMaxConcurrency(c.FSConfig.MaxConcurrency),
		fs.WithGetSources(source.FromDefaultLabels(source.RegistryHosts(hosts))),
		fs.WithMetadataStore(func(r *io.SectionReader, toc ztoc.TOC, o ...metadata.Option) (metadata.Reader, error) {
			return metadata.NewReader(db, r, toc, o...)
		}))
	return lazy, db.Close, err
}
