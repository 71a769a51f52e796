-- The built-in channel table: what a user has switched on, and how. Subscription rules read it like any
-- table; the API below /users/me/channels writes it.
CREATE TABLE IF NOT EXISTS rowcast_channels (
    user_id      text        NOT NULL,
    channel_type text        NOT NULL,
    enabled      boolean     NOT NULL DEFAULT true,
    config       jsonb       NOT NULL DEFAULT '{}',
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, channel_type)
)
