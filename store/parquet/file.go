package parquet

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/parquet-go/parquet-go/encoding/thrift"
	"github.com/parquet-go/parquet-go/format"
)

// segmentFile is an open file with its footer and page index. It is immutable
// but for refs and safe for concurrent reads.
type segmentFile struct {
	f      file
	meta   *metadata
	groups []rowGroup
	refs   atomic.Int32 // the cache's own counts as one; the last one closes f
}

// rowGroup keeps of the page index what queries ask for.
type rowGroup struct {
	rows    int64
	before  int64 // pages in the groups before
	pages   []pageBounds
	offsets [columns][]pagePlace
	dict    [columns]pagePlace // size 0: none
}

type pageBounds struct {
	first            int64 // row in the group
	rows             int32
	minTime, maxTime int64
	minDevice        string
	maxDevice        string
	minSensor        string
	maxSensor        string
}

type pagePlace struct {
	at   int64
	size int32
}

// footerGuessBytes are read from the end of a file at once; small files, and
// their page index, fit whole.
const footerGuessBytes = 16 << 10

// readFooter verifies a file's first and last bytes and its footer.
func readFooter(f file) (*format.FileMetaData, *metadata, int64, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, nil, 0, fmt.Errorf("stat: %w", err)
	}
	size := info.Size()
	if size < int64(len(magic))+tailBytes {
		return nil, nil, size, fmt.Errorf("%d bytes are no Parquet file", size)
	}
	end := make([]byte, min(size, footerGuessBytes))
	if _, err := f.ReadAt(end, size-int64(len(end))); err != nil {
		return nil, nil, size, fmt.Errorf("read footer: %w", err)
	}
	n, err := footerLength(end[len(end)-tailBytes:], size)
	if err != nil {
		return nil, nil, size, err
	}
	body := size - tailBytes - n
	var footer []byte
	if n+tailBytes <= int64(len(end)) {
		footer = end[int64(len(end))-tailBytes-n : len(end)-tailBytes]
	} else {
		footer = make([]byte, n)
		if _, err := f.ReadAt(footer, body); err != nil {
			return nil, nil, size, fmt.Errorf("read footer: %w", err)
		}
	}
	md, meta, err := parseFooter(footer, body)
	if err != nil {
		return nil, nil, size, err
	}
	meta.Bytes = size
	return md, meta, size, nil
}

// newSegmentFile reads the footer and the page index of an open file, which it
// owns from here on. The caller holds one reference.
func newSegmentFile(f file) (*segmentFile, error) {
	s := &segmentFile{f: f}
	s.refs.Store(1)
	if err := s.load(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return s, nil
}

func (s *segmentFile) load() (err error) {
	defer guard(&err)
	md, meta, _, err := readFooter(s.f)
	if err != nil {
		return err
	}
	s.meta = meta
	s.groups = make([]rowGroup, len(md.RowGroups))
	var rows, pages int64
	var scratch []byte
	for i := range md.RowGroups {
		if err := s.loadGroup(&s.groups[i], &md.RowGroups[i], &scratch); err != nil {
			return fmt.Errorf("row group %d: %w", i, err)
		}
		s.groups[i].before = pages
		rows, pages = rows+s.groups[i].rows, pages+int64(len(s.groups[i].pages))
	}
	if uint64(rows) != meta.Rows {
		return fmt.Errorf("row groups have %d rows, the footer says %d", rows, meta.Rows)
	}
	return nil
}

func (s *segmentFile) loadGroup(g *rowGroup, md *format.RowGroup, scratch *[]byte) error {
	if len(md.Columns) != int(columns) || md.NumRows <= 0 {
		return fmt.Errorf("%d columns and %d rows", len(md.Columns), md.NumRows)
	}
	g.rows = md.NumRows
	names, types := columnNames(), physicalTypes()
	for c := range columns {
		chunk := &md.Columns[c]
		cm := &chunk.MetaData
		if len(cm.PathInSchema) != 1 || cm.PathInSchema[0] != names[c] || cm.Type != types[c] || cm.Codec != format.Zstd {
			return fmt.Errorf("column %d is not %s", c, names[c])
		}
		if cm.DictionaryPageOffset > 0 {
			g.dict[c] = pagePlace{at: cm.DictionaryPageOffset, size: int32(cm.DataPageOffset - cm.DictionaryPageOffset)}
		}
		var index format.OffsetIndex
		if err := s.readThrift(chunk.OffsetIndexOffset, int64(chunk.OffsetIndexLength), &index, scratch); err != nil {
			return fmt.Errorf("offset index of %s: %w", names[c], err)
		}
		if err := g.place(c, index.PageLocations); err != nil {
			return fmt.Errorf("offset index of %s: %w", names[c], err)
		}
	}
	return s.loadBounds(g, md, scratch)
}

// place takes the pages of one column; all columns have the same pages.
func (g *rowGroup) place(c column, pages []format.PageLocation) error {
	if c == 0 {
		g.pages = make([]pageBounds, len(pages))
	}
	if len(pages) == 0 || len(pages) != len(g.pages) || pages[0].FirstRowIndex != 0 {
		return fmt.Errorf("%d pages, expected %d", len(pages), len(g.pages))
	}
	g.offsets[c] = make([]pagePlace, len(pages))
	for i, p := range pages {
		next := g.rows
		if i+1 < len(pages) {
			next = pages[i+1].FirstRowIndex
		}
		rows := next - p.FirstRowIndex
		if rows <= 0 || rows > pageRowsMax || (c > 0 && g.pages[i].first != p.FirstRowIndex) {
			return fmt.Errorf("page %d begins at row %d and has %d rows", i, p.FirstRowIndex, rows)
		}
		g.pages[i].first, g.pages[i].rows = p.FirstRowIndex, int32(rows)
		g.offsets[c][i] = pagePlace{at: p.Offset, size: p.CompressedPageSize}
	}
	return nil
}

func (s *segmentFile) loadBounds(g *rowGroup, md *format.RowGroup, scratch *[]byte) error {
	for _, c := range []column{colTime, colDevice, colSensor} {
		chunk := &md.Columns[c]
		var index format.ColumnIndex
		if err := s.readThrift(chunk.ColumnIndexOffset, int64(chunk.ColumnIndexLength), &index, scratch); err != nil {
			return fmt.Errorf("column index of %s: %w", columnNames()[c], err)
		}
		if len(index.MinValues) != len(g.pages) || len(index.MaxValues) != len(g.pages) {
			return fmt.Errorf("column index of %s has %d pages, expected %d", columnNames()[c], len(index.MinValues), len(g.pages))
		}
		last := ""
		text := func(b []byte) string { // neighbours are mostly equal
			if string(b) != last {
				last = string(b)
			}
			return last
		}
		for i := range g.pages {
			p, least, most := &g.pages[i], index.MinValues[i], index.MaxValues[i]
			switch c {
			case colDevice:
				p.minDevice, p.maxDevice = text(least), text(most)
			case colSensor:
				p.minSensor, p.maxSensor = text(least), text(most)
			default:
				if len(least) != 8 || len(most) != 8 {
					return errors.New("column index of time has a bound that is no time")
				}
				p.minTime, p.maxTime = int64(le64(least)), int64(le64(most))
			}
		}
	}
	return nil
}

func (s *segmentFile) readThrift(at, n int64, v any, scratch *[]byte) error {
	raw, err := s.read(at, n, scratch)
	if err != nil {
		return err
	}
	// A copy, because the decoder may keep slices of its input.
	return thrift.Unmarshal(new(thrift.CompactProtocol), append([]byte(nil), raw...), v)
}

// read returns n verified bytes of the body at an offset; they are valid until
// scratch is used again.
func (s *segmentFile) read(at, n int64, scratch *[]byte) ([]byte, error) {
	if at < 0 || n <= 0 || at > s.meta.Body || n > s.meta.Body-at {
		return nil, fmt.Errorf("%d bytes at %d lie outside of a body of %d bytes", n, at, s.meta.Body)
	}
	lo := at / blockBytes * blockBytes
	hi := min(s.meta.Body, (at+n+blockBytes-1)/blockBytes*blockBytes)
	if int64(cap(*scratch)) < hi-lo {
		*scratch = make([]byte, hi-lo)
	}
	b := (*scratch)[:hi-lo]
	if _, err := s.f.ReadAt(b, lo); err != nil {
		return nil, fmt.Errorf("read %d bytes at %d: %w", len(b), lo, err)
	}
	for block := lo; block < hi; block += blockBytes {
		want := s.meta.Blocks[block/blockBytes]
		if have := checksum(b[block-lo : min(block+blockBytes, hi)-lo]); have != want {
			return nil, fmt.Errorf("block at %d has checksum %08x, expected %08x", block, have, want)
		}
	}
	return b[at-lo : at-lo+n], nil
}

// acquire adds a reference unless the file is closed already.
func (s *segmentFile) acquire() bool {
	for {
		n := s.refs.Load()
		if n == 0 {
			return false
		}
		if s.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (s *segmentFile) release() {
	if s.refs.Add(-1) == 0 {
		_ = s.f.Close() // read only: nothing can be lost
	}
}

// verifyBlocks reads the whole body.
func (s *segmentFile) verifyBlocks(ctx context.Context, pace func(context.Context, int64) error) error {
	var scratch []byte
	for at := int64(0); at < s.meta.Body; at += blockBytes {
		if err := ctx.Err(); err != nil {
			return err
		}
		if pace != nil {
			if err := pace(ctx, blockBytes); err != nil {
				return err
			}
		}
		b, err := s.read(at, min(blockBytes, s.meta.Body-at), &scratch)
		if err != nil {
			return err
		}
		if at == 0 && string(b[:len(magic)]) != magic {
			return errors.New("file does not begin as Parquet")
		}
	}
	return nil
}
