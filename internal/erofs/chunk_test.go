package erofs

import (
	"bytes"
	"testing"
)

func TestAFileIsOneChunkWhileItCanBe(t *testing.T) {
	tests := []struct {
		size     int64
		exponent uint32
		count    uint64
	}{
		{1, 0, 1}, {BlockSize, 0, 1}, {BlockSize + 1, 1, 1}, {2 * BlockSize, 1, 1}, {2*BlockSize + 1, 2, 1},
		{8 << 40, 31, 1}, {8<<40 + 1, 31, 2}, {15 << 40, 31, 2},
	}
	for _, tt := range tests {
		if e, n := chunkExponent(tt.size), chunkCount(tt.size); e != tt.exponent || n != tt.count {
			t.Errorf("%d bytes: %d chunks of 2^%d blocks, want %d of 2^%d", tt.size, n, e, tt.count, tt.exponent)
		}
	}
}

func TestAFileOfTwoChunksIsOneRun(t *testing.T) {
	file := &Inode{Mode: typeRegular | 0o644, Size: 9<<40 + 5, Offset: 3 * BlockSize, Device: 1}
	img := &Image{
		Root:    &Inode{Mode: typeDir | 0o755, Children: []Dirent{{"file", file}}},
		Devices: []Device{{"one", 1}, {"two", 10 << 28}},
	}
	var b bytes.Buffer
	if err := Write(&b, img); err != nil {
		t.Fatal(err)
	}
	read, err := open(t, b.Bytes()).Tree()
	if err != nil {
		t.Fatal(err)
	}
	got := read.Root.Children[0].Inode
	if got.Size != file.Size || got.Offset != file.Offset || got.Device != file.Device {
		t.Errorf("got %d bytes at %d of device %d", got.Size, got.Offset, got.Device)
	}
}
