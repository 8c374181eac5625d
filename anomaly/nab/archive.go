package nab

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// archiveBytesMax bounds what an archive may unpack to; the corpus takes 14 MB.
const archiveBytesMax = 1 << 30

// Source gives whole files by slash-separated name; a missing one is an error
// that wraps fs.ErrNotExist.
type Source interface {
	ReadFile(name string) ([]byte, error)
}

// memory is an unpacked archive.
type memory map[string][]byte

func (m memory) ReadFile(name string) ([]byte, error) {
	b, ok := m[name]
	if !ok {
		return nil, &fs.PathError{Op: "read", Path: name, Err: fs.ErrNotExist}
	}
	return b, nil
}

// folder is a folder on disk.
type folder string

func (f folder) ReadFile(name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(string(f), filepath.FromSlash(name)))
}

// ReadTar reads the regular files of a tar stream into memory. The first
// component of every name, the folder that the archive was made of, is dropped.
func ReadTar(r io.Reader) (Source, error) {
	out := memory{}
	tr := tar.NewReader(r)
	left := int64(archiveBytesMax)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read archive: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if left -= h.Size; left < 0 {
			return nil, fmt.Errorf("archive unpacks to more than %d bytes", archiveBytesMax)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			return nil, fmt.Errorf("read %s from archive: %w", h.Name, err)
		}
		_, name, ok := strings.Cut(path.Clean(h.Name), "/")
		if ok {
			out[name] = b
		}
	}
}

// OpenDir finds the corpus in dir: a checkout with data and labels, or the
// archive nab.tar.gz.
func OpenDir(dir string) (Source, error) {
	if _, err := os.Stat(filepath.Join(dir, windowsPath)); err == nil {
		return folder(dir), nil
	}
	f, err := os.Open(filepath.Join(dir, "nab.tar.gz"))
	if err != nil {
		return nil, fmt.Errorf("no benchmark in %s, want %s or nab.tar.gz: %w", dir, windowsPath, err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return ReadTar(z)
}
