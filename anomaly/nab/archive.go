package nab

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/ulikunitz/xz"
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

// OpenDir finds the corpus in dir: a folder with data and labels, one that holds
// such a folder named nab or NAB, or the archive nab.tar.gz.
func OpenDir(dir string) (Source, error) {
	for _, d := range []string{dir, filepath.Join(dir, "nab"), filepath.Join(dir, "NAB")} {
		if _, err := os.Stat(filepath.Join(d, windowsPath)); err == nil {
			return folder(d), nil
		}
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

// checkout is a folder with the benchmark's repository: published results stand
// under results, thresholds under config.
type checkout string

func (c checkout) ReadFile(name string) ([]byte, error) {
	if name == thresholdsPath {
		return folder(c).ReadFile("config/" + name)
	}
	return folder(c).ReadFile("results/" + name)
}

// OpenPublished finds the published results of other detectors in dir: the
// archive published_scores.tar.xz, its unpacked folder scores, or a checkout
// with results and config.
func OpenPublished(dir string) (Source, error) {
	for _, src := range []Source{folder(dir), folder(filepath.Join(dir, "scores")), checkout(dir)} {
		if _, err := src.ReadFile(thresholdsPath); err != nil {
			continue
		}
		if _, err := src.ReadFile(finalPath); err == nil {
			return src, nil
		}
	}
	f, err := os.Open(filepath.Join(dir, "published_scores.tar.xz"))
	if err != nil {
		return nil, fmt.Errorf("no published results in %s: %w", dir, err)
	}
	defer f.Close()
	x, err := xz.NewReader(bufio.NewReader(f))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return ReadTar(x)
}
