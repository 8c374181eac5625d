package cluster

import (
	"fmt"
	"strings"

	"github.com/sluice-iot/sluice/telemetry"
)

// incarnationDigits is the length of an incarnation: 8 hex digits, 32 bits, so
// that two directories of one node collide once in 65,000 replacements.
const incarnationDigits = 8

// PeerID joins a node id and the incarnation of its data directory to the name
// that is used in every frame and in every raft configuration.
func PeerID(node telemetry.NodeID, incarnation string) string {
	return string(node) + "." + incarnation
}

// SplitPeer takes a peer id apart. A node id may contain dots, an incarnation
// may not.
func SplitPeer(peer string) (telemetry.NodeID, string, error) {
	i := strings.LastIndexByte(peer, '.')
	if i <= 0 || !validIncarnation(peer[i+1:]) {
		return "", "", fmt.Errorf("peer id %q is not <node id>.<%d hex digits>", peer, incarnationDigits)
	}
	return telemetry.NodeID(peer[:i]), peer[i+1:], nil
}

// ValidateNodeID refuses ids that cannot be part of a peer id, a file name and a
// metric label: 1 to 63 of [A-Za-z0-9._-], beginning with a letter or a digit.
func ValidateNodeID(id telemetry.NodeID) error {
	return validateName("node id", string(id))
}

// ValidateZone applies the rules of node ids to a zone's name.
func ValidateZone(z telemetry.Zone) error {
	return validateName("zone", string(z))
}

// nameBytesMax is the length of a DNS label, so that a node id may be one.
const nameBytesMax = 63

func validateName(what, s string) error {
	if s == "" {
		return fmt.Errorf("%s is empty: set it in the configuration", what)
	}
	if len(s) > nameBytesMax {
		return fmt.Errorf("%s %q is longer than %d bytes", what, s, nameBytesMax)
	}
	for i := range len(s) {
		c := s[i]
		ok := c-'0' <= 9 || (c|0x20)-'a' <= 25 || (i > 0 && (c == '.' || c == '_' || c == '-'))
		if !ok {
			return fmt.Errorf("%s %q has an illegal character at byte %d: use letters, digits, '.', '_' and '-', beginning with a letter or digit", what, s, i)
		}
	}
	return nil
}

func validIncarnation(s string) bool {
	if len(s) != incarnationDigits {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c-'0' > 9 && c-'a' > 5 {
			return false
		}
	}
	return true
}
