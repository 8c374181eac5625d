package node

import (
	"encoding/hex"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-iot/sluice/wal"
)

func TestEncryptionWithoutAKeyIsRefused(t *testing.T) {
	text := "node:\n  id: n0\n  zone: a\n  data: x\ncluster:\n  secret: 0123456789abcdef-secret\nwal:\n  encryption:\n    enabled: true\n"
	if _, err := LoadConfig(temp(t, "n.yaml", text), nil, nil); err == nil || !strings.Contains(err.Error(), "wal.encryption.key_file") {
		t.Errorf("no key: %v", err)
	}
	key := wal.Key{7}
	cfg, err := LoadConfig(temp(t, "n.yaml", strings.ReplaceAll(text, "true", "false")), []string{"SLUICE_WAL_ENCRYPTION_ENABLED=true", "SLUICE_WAL_ENCRYPTION_KEY=" + hex.EncodeToString(key[:])}, nil)
	if err != nil || !cfg.WAL.Encryption.Enabled {
		t.Fatalf("%+v, %v", cfg.WAL.Encryption, err)
	}
	if keys, err := cfg.WAL.Encryption.Keys(); err != nil || len(keys) != 1 || keys[0] != key {
		t.Errorf("keys %v, %v", keys, err)
	}
	cfg.WAL.Encryption.KeyFile = filepath.Join(t.TempDir(), "none")
	if _, err := cfg.WAL.Encryption.Keys(); err == nil || !strings.Contains(err.Error(), "wal.encryption.key_file") {
		t.Errorf("missing file: %v", err)
	}
	if _, err := LoadConfig(temp(t, "n.yaml", text), []string{"SLUICE_WAL_ENCRYPTION_KEY=short"}, nil); err == nil || !strings.Contains(err.Error(), "head -c 32") {
		t.Errorf("bad key: %v", err)
	}
	cfg.HideSecrets()
	if cfg.WAL.Encryption.Key != Hidden {
		t.Error("config print shows the key")
	}
}
