package snapfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"os"
	"path/filepath"
)

// stateFile is raft's file with the state; its checksum, CRC-64 ECMA, stands in
// metaFile.
const stateFile = "state.bin"

// verifyBytes is read at once.
const verifyBytes = 256 << 10

// Verify reads the snapshot id below dir back and compares its checksums, as Open
// does, but at the caller's pace: pace gets the size of what was read and may
// wait; its error ends the reading and is returned as it is. An error that wraps
// fs.ErrNotExist may mean that a newer snapshot has replaced this one meanwhile.
func Verify(dir, id string, pace func(bytes int) error) error {
	dir = filepath.Join(dir, subdir, id)
	meta, err := os.ReadFile(filepath.Join(dir, metaFile))
	if err != nil {
		return fmt.Errorf("verify snapshot: %w", err)
	}
	sum, err := os.ReadFile(filepath.Join(dir, sumFile))
	if err != nil {
		return fmt.Errorf("verify snapshot: %w", err)
	}
	if string(sum) != sumOf(meta) {
		return fmt.Errorf("%s has not the checksum in %s", metaFile, sumFile)
	}
	var want struct{ CRC []byte }
	if err := json.Unmarshal(meta, &want); err != nil {
		return fmt.Errorf("decode %s: %w", metaFile, err)
	}
	return verifyState(filepath.Join(dir, stateFile), want.CRC, pace)
}

func verifyState(path string, want []byte, pace func(bytes int) error) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("verify snapshot: %w", err)
	}
	defer func() { _ = f.Close() }() // read only
	sum := crc64.New(crc64.MakeTable(crc64.ECMA))
	for buf := make([]byte, verifyBytes); ; {
		n, err := f.Read(buf)
		sum.Write(buf[:n])
		if err := pace(n); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", stateFile, err)
		}
	}
	if !bytes.Equal(sum.Sum(nil), want) {
		return fmt.Errorf("%s has not the checksum in %s", stateFile, metaFile)
	}
	return nil
}
