package main

import (
	"net"
	"path/filepath"
	"testing"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/config"
)

// A daemon has the cache before it listens: who asks in between waits for it.
func TestDialWaitsForTheSocketOfWhoHasTheCache(t *testing.T) {
	dir := t.TempDir()
	cfg := config.Config{Root: dir, Socket: filepath.Join(dir, "s.sock")}
	a := &app{}
	if client, err := a.dialUnless(t.Context(), false, cfg); client != nil || err != nil {
		t.Fatalf("nobody there: %v, %v", client, err)
	}
	root, err := cache.OpenRoot(dir, cache.RootOptions{AllowAnyFilesystem: true})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	got := make(chan error)
	began := make(chan struct{})
	go func() {
		close(began)
		client, err := a.dial(t.Context(), cfg)
		if err == nil {
			client.Close()
		}
		got <- err
	}()
	<-began
	l, err := net.Listen("unix", cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := <-got; err != nil {
		t.Error(err)
	}
}
