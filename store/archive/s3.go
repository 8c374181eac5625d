package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// S3Config names a bucket of an S3-compatible store.
type S3Config struct {
	Endpoint  string // https://HOST[:PORT], or http:// in a network of your own
	Bucket    string // must exist
	Region    string // empty: the store is asked for it
	AccessKey string
	SecretKey string
}

// Validate returns every problem at once.
func (c *S3Config) Validate() error {
	var errs []error
	if u, err := url.Parse(c.Endpoint); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.Path != "" && u.Path != "/" {
		errs = append(errs, fmt.Errorf("endpoint %q is not https://HOST[:PORT]", c.Endpoint))
	}
	if c.Bucket == "" {
		errs = append(errs, errors.New("bucket is empty: name one that exists"))
	}
	if c.AccessKey == "" || c.SecretKey == "" {
		errs = append(errs, errors.New("access key or secret key is empty: set both"))
	}
	return errors.Join(errs...)
}

// S3 is a Bucket behind the S3 API.
type S3 struct {
	client *minio.Client
	idle   func() // closes idle connections
	bucket string
}

// NewS3 talks to nobody yet.
func NewS3(cfg S3Config) (*S3, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	u, err := url.Parse(cfg.Endpoint)
	if err != nil {
		return nil, err
	}
	transport, err := minio.DefaultTransport(u.Scheme == "https")
	if err != nil {
		return nil, fmt.Errorf("make S3 transport: %w", err)
	}
	client, err := minio.New(u.Host, &minio.Options{
		Creds: credentials.NewStaticV4(cfg.AccessKey, cfg.SecretKey, ""), Secure: u.Scheme == "https", Region: cfg.Region, Transport: transport,
	})
	if err != nil {
		return nil, fmt.Errorf("make S3 client: %w", err)
	}
	return &S3{client: client, idle: transport.CloseIdleConnections, bucket: cfg.Bucket}, nil
}

// Close drops idle connections.
func (s *S3) Close() { s.idle() }

// List implements Bucket.
func (s *S3) List(ctx context.Context, prefix string) ([]string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the listing where it is left early
	var keys []string
	for o := range s.client.ListObjects(ctx, s.bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
		if o.Err != nil {
			return nil, o.Err
		}
		keys = append(keys, o.Key)
	}
	return keys, ctx.Err()
}

// partBytes is what a larger object is sent in; one part is in memory at a time.
const partBytes = 16 << 20

// Put implements Bucket.
func (s *S3) Put(ctx context.Context, key string, body io.Reader, size int64) error {
	_, err := s.client.PutObject(ctx, s.bucket, key, body, size, minio.PutObjectOptions{
		ContentType: "application/vnd.apache.parquet", PartSize: partBytes, NumThreads: 1,
	})
	return err
}

// Get implements Source.
func (s *S3) Get(ctx context.Context, key string, w io.Writer) error {
	o, err := s.client.GetObject(ctx, s.bucket, key, minio.GetObjectOptions{})
	if err != nil {
		return err
	}
	_, err = io.Copy(w, o)
	return errors.Join(err, o.Close())
}
