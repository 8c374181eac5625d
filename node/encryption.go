package node

import (
	"errors"
	"fmt"
	"os"

	"github.com/sluice-iot/sluice/wal"
)

// EncryptionConfig is encryption at rest of the log. Both key settings may be
// given; the keys of the file come first.
type EncryptionConfig struct {
	Enabled bool   `yaml:"enabled"`  // seal what is written from now on; reading needs the keys alone
	KeyFile string `yaml:"key_file"` // operator keys, one a line, the first one for new segments
	Key     string `yaml:"key"`      // the same, comma-separated; meant for SLUICE_WAL_ENCRYPTION_KEY
}

// Keys reads the operator keys.
func (c *EncryptionConfig) Keys() ([]wal.Key, error) {
	var text string
	if c.KeyFile != "" {
		b, err := os.ReadFile(c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read wal.encryption.key_file: %w", err)
		}
		if text = string(b) + "\n"; len(b) == 0 {
			return nil, fmt.Errorf("wal.encryption.key_file %s is empty: head -c 32 /dev/urandom | base64 makes a key", c.KeyFile)
		}
	}
	keys, err := wal.ParseKeys(text + c.Key)
	if err != nil {
		return nil, fmt.Errorf("wal.encryption: %w", err)
	}
	if c.Enabled && len(keys) == 0 {
		return nil, errors.New("wal.encryption.enabled needs a key: set wal.encryption.key_file or SLUICE_WAL_ENCRYPTION_KEY")
	}
	return keys, nil
}

func (c *EncryptionConfig) validate() error {
	if c.Enabled && c.KeyFile == "" && c.Key == "" {
		return errors.New("needs a key: set wal.encryption.key_file or SLUICE_WAL_ENCRYPTION_KEY")
	}
	_, err := wal.ParseKeys(c.Key)
	return err
}
