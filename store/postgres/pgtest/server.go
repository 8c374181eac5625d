package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Options of a Server. The zero value is a server that is quick to start.
type Options struct {
	// Durable lets the server fsync; without it only the machine's own crash
	// loses what was committed, a kill -9 does not.
	Durable bool
	// Settings are lines of postgresql.conf, "max_connections = 50".
	Settings []string
}

// Server is a running PostgreSQL server.
type Server struct {
	bin, dir  string
	port      int
	owner     *syscall.Credential // nil: our own user
	cmd       *exec.Cmd
	log       *os.File
	databases atomic.Int32
}

// startTimeout bounds initdb and each start; two busy cores need a few seconds.
const startTimeout = time.Minute

// Find returns the directory with the newest server's programs.
func Find() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil {
		return "", fmt.Errorf("look for PostgreSQL: %w", err)
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		found = append(found, path)
	}
	if len(found) == 0 {
		return "", errors.New("PostgreSQL is not installed: run deploy/test-deps.sh")
	}
	return filepath.Dir(slices.MaxFunc(found, compareVersions)), nil
}

func compareVersions(a, b string) int {
	v := func(path string) int {
		n, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		if err != nil {
			return 0
		}
		return n
	}
	return v(a) - v(b)
}

// Start starts a server that ends with the test; it skips the test where
// PostgreSQL is not installed.
func Start(tb testing.TB, o Options) *Server {
	tb.Helper()
	if _, err := Find(); err != nil {
		tb.Skip(err)
	}
	s, err := New(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// New makes a database cluster in a temporary directory and starts it.
func New(o Options) (*Server, error) {
	bin, err := Find()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "pgtest-")
	if err != nil {
		return nil, fmt.Errorf("make the server's directory: %w", err)
	}
	s := &Server{bin: bin, dir: dir}
	if err := s.init(o); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := s.Restart(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

func (s *Server) init(o Options) error {
	if os.Geteuid() == 0 {
		if err := s.giveAway(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	cmd := s.command(ctx, "initdb", "--pgdata", s.data(), "--username", "postgres", "--auth", "trust", "--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, bytes.TrimSpace(out))
	}
	var err error
	if s.port, err = freePort(); err != nil {
		return err
	}
	onOff := map[bool]string{true: "on", false: "off"}
	lines := append([]string{
		"listen_addresses = '127.0.0.1'", "port = " + strconv.Itoa(s.port), "unix_socket_directories = ''",
		"fsync = " + onOff[o.Durable], "shared_buffers = 64MB", "max_wal_size = 1GB", "logging_collector = off", "timezone = 'Asia/Kathmandu'",
	}, o.Settings...)
	f, err := os.OpenFile(filepath.Join(s.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("configure the server: %w", err)
	}
	_, err = f.WriteString(strings.Join(lines, "\n") + "\n")
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("configure the server: %w", err)
	}
	return nil
}

// giveAway finds a user to run the server as and gives it the directory.
func (s *Server) giveAway() error {
	u, err := user.Lookup("postgres")
	if err != nil {
		if u, err = user.Lookup("nobody"); err != nil {
			return fmt.Errorf("find a user for the server: %w", err)
		}
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return fmt.Errorf("user id of %s: %w", u.Username, err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return fmt.Errorf("group id of %s: %w", u.Username, err)
	}
	s.owner = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	if err := os.Chown(s.dir, int(uid), int(gid)); err != nil {
		return fmt.Errorf("give the server's directory to %s: %w", u.Username, err)
	}
	return nil
}

func (s *Server) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, name), args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8", "HOME=" + s.dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.owner}
	return cmd
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	return port, l.Close()
}

// Addr is the server's host:port, the same after a restart.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// URL connects to a database as superuser.
func (s *Server) URL(database string) string {
	return fmt.Sprintf("postgres://postgres@%s/%s?sslmode=disable", s.Addr(), database)
}

// Database makes an empty database and returns its URL.
func (s *Server) Database(tb testing.TB) string {
	tb.Helper()
	name := fmt.Sprintf("test%d", s.databases.Add(1))
	s.Exec(tb, s.URL("postgres"), "create database "+name)
	return s.URL(name)
}

// Exec runs statements at a URL.
func (s *Server) Exec(tb testing.TB, url string, statements ...string) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	c, err := pgx.Connect(ctx, url)
	if err != nil {
		tb.Fatalf("connect: %v", err)
	}
	defer func() {
		if err := c.Close(ctx); err != nil {
			tb.Errorf("close connection: %v", err)
		}
	}()
	for _, sql := range statements {
		if _, err := c.Exec(ctx, sql); err != nil {
			tb.Fatalf("%s: %v", sql, err)
		}
	}
}
