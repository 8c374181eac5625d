package node

import "net/url"

// Hidden stands for a secret that is set.
const Hidden = "(hidden)"

// HideSecrets makes the configuration one that can be shown.
func (c *Config) HideSecrets() {
	if c.Cluster.Secret != "" {
		c.Cluster.Secret = Hidden
	}
	if c.Archive.SecretKey != "" {
		c.Archive.SecretKey = Hidden
	}
	if c.WAL.Encryption.Key != "" {
		c.WAL.Encryption.Key = Hidden
	}
	if c.Store.Database == "" {
		return
	}
	u, err := url.Parse(c.Store.Database)
	if err != nil {
		c.Store.Database = Hidden // it may hold a password somewhere
		return
	}
	q := u.Query()
	if q.Has("password") {
		q.Set("password", "xxxxx")
		u.RawQuery = q.Encode()
	}
	c.Store.Database = u.Redacted()
}
